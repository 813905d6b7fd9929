"""A world without machines, in which the real `Reconciler` and the real `decide` run through schedules of faults.

clock         jumps from event to event
schedule      one seed -> settings, stages, and faults
faults        what each kind of fault does to the world
store         the journal: facts created once, and readers that may be late
machines      the backend: processes that train, save, hang, vanish and come back
slices        the provisioner: zones, and a bill of its own
lines         what lies between a controller and these three: answers that are late, lost, or given twice
controllers   controllers that crash between any two effects, sleep with an old observation, and have a wrong clock
invariants    what must never be seen, whatever happens; `test_invariants` plants a bug for each
world         all of it together; `simulate(seed)`

python -m tests.deploy.simulation --schedules 10000 --processes 2    seeds 0 to 9,999, on two cores
python -m tests.deploy.simulation SEED                               one of them, with all that happens in it
"""
