"""The run directory as the controller reads and writes it.

    slices/<name>/REQUEST.json     zone and price, before anything is asked for
    slices/<name>/READY.json       the first time that a stage could start on it
    slices/<name>/TROUBLE.json     why it came to nothing, or ended
    slices/<name>/RELEASE.json     that we do not need it any more, before it is given back
    slices/<name>/GONE.json        the first time that it was not there any more after that
    controller/status.json         the last decision, for people and programs that ask; nothing is decided on it

All but the last are created only if absent and never change, so they are read once. What is done stays done while the
configuration is the same. A look costs a handful of requests, however long the run has been going on.
"""
