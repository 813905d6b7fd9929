"""What runs on the VMs of a slice.

`startup.sh` begins at every boot and has the machine: docker, the metadata server, and the right to delete the slice.
`watch` runs in a container of the same image beside the stages, reads the run directory, and says line by line what
the script has to do. `entry` is the first process of a stage's container.
"""
