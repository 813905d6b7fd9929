"""A real Kubernetes control plane on this machine, with simulated nodes that run pods for real.

`make test-cluster` runs the tests on it, `make cluster-up` leaves one running. `cluster.Cluster` is the way in;
`binaries` builds the programs, `control_plane` starts them, `kubelet` is a node, `pods`, `slots` and `containers` are
the life of a pod, of a container's place in it, and of one process. Where a simulated node does what a real one does, the
code names the page that says so; where it does not, the module says that.
"""

import pytest

pytest.register_assert_rewrite("tests.cluster.outcomes", "tests.cluster.releases")
