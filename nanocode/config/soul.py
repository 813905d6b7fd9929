"""Where the text of the SOUL comes from: a file of the user's, or ours."""

from importlib import resources
from pathlib import Path

from nanocode.config.refusals import cause
from nanocode.run.exits import ConfigurationError


def soul_text(path: str | None) -> str:
    """What the SOUL at a path says, to the byte; ours without one. `ConfigurationError` when it cannot be read."""
    try:
        if path is None:
            return resources.files("nanocode.config").joinpath("SOUL.md").read_bytes().decode()
        return Path(path).expanduser().read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read soul {path} ({cause(error)}): correct the setting `soul`") from None
