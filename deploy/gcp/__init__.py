"""From a Google Cloud project to a run in a cluster, by `gcloud`, `kubectl` and `helm`."""
