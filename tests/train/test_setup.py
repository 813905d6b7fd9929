"""What training demands of the devices, and what evaluation and export, which have no batch, do without."""

import jax
import pytest

from nanocode.config.settings import load
from nanocode.run.exits import ConfigurationError
from nanocode.train.setup import make_setup, make_trainer


@pytest.mark.parametrize(
    ("setting", "fsdp", "told"),
    [
        ("pretrain.fsdp=16", 8, "8 devices are not divisible by fsdp 16"),
        ("pretrain.fsdp=12", 4, "8 devices are not divisible by fsdp 12"),
        ("pretrain.batch_tokens=1152", 1, "the 3 rows of a micro-batch"),
    ],
)
def test_only_training_insists_on_its_mesh_and_its_batch(setting: str, fsdp: int, told: str) -> None:
    settings = load("demo", [setting], environment={})
    setup = make_setup(settings)
    assert setup.mesh.shape == {"data": jax.device_count() // fsdp, "fsdp": fsdp, "tensor": 1}
    with pytest.raises(ConfigurationError, match=told):
        make_trainer(settings, settings.pretrain, settings.pretrain_steps)
