"""What the controller does next. Pure: no cluster, no clock, no storage, no logging.

The state of a stage, and what is done in it; the first line that holds counts:

| state        | holds when                                           | and then                               |
|--------------|------------------------------------------------------|----------------------------------------|
| done         | its marker has the digest                            | an attempt that still lives is stopped |
| cancelled    | the user cancelled the run                           | the same                               |
| suspended    | the user suspended it                                | the same                               |
| over budget  | going on would cost more than the budget             | the same                               |
| failed       | configuration, too many failures, or no progress     | nothing, until the user runs it again  |
| running      | an attempt lives and has done its first step         | deadline: heartbeat                    |
| starting     | an attempt lives                                     | deadlines: admission, first step       |
| preempted    | its last attempt was taken away                      | begin, where a machine is free         |
| stale        | its marker has another digest                        | begin, where a machine is free         |
| waiting      | a stage it reads is not done, or no machine is free  | begin, once that has changed           |
| provisioning | it could run, and a slice for it is asked for        | deadline: provision                    |

An attempt with another digest is stopped before a new one begins.
"""

from deploy.controller.decision import Decision
from deploy.controller.observed import Observed
from nanocode.config.settings import Budget, Controller


def decide(seen: Observed, policy: Controller, budget: Budget) -> Decision:
    """What to do next, and the state of every stage and of the run."""
    raise NotImplementedError
