# Installs a list of requirements into /opt/venv, in the versions of constraints.txt, from wheels only.
# Byte code is made here, since nothing can write it later, and is not checked against its source at every start.
set -eu
/opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: \
  --disable-pip-version-check --constraint constraints.txt --requirement "$1"
python3 -m compileall -q --workers 0 --invalidation-mode unchecked-hash /opt/venv/lib
