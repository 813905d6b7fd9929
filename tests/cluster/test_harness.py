"""What the simulated nodes promise, on the real control plane."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.cluster.access import Json
from tests.cluster.cluster import Cluster
from tests.cluster.containers import remove
from tests.cluster.images import Image
from tests.cluster.manifests import RESTRICTED, container, headless_service, indexed_job, on, pod, pod_spec
from tests.cluster.node import v6e_node
from tests.cluster.processes import wait_until

pytestmark = pytest.mark.cluster
FAIL_ON_DISRUPTION: Json = {
    "podFailurePolicy": {"rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}]}
}


def condition(item: Json, kind: str) -> Json:
    found = [one for one in item.get("status", {}).get("conditions") or () if one["type"] == kind]
    return found[0] if found and found[0]["status"] == "True" else {}


def fetch(cluster: Cluster, namespace: str, kind: str, name: str) -> Json:
    group = {"jobs": "/apis/batch/v1", "deployments": "/apis/apps/v1"}.get(kind, "/api/v1")
    return cluster.api.get(f"{group}/namespaces/{namespace}/{kind}/{name}")


def pods_of(cluster: Cluster, namespace: str) -> list[Json]:
    items: list[Json] = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return sorted(items, key=lambda one: str(one["metadata"]["name"]))


def phase(cluster: Cluster, namespace: str, name: str) -> str:
    return str(fetch(cluster, namespace, "pods", name)["status"]["phase"])


def wait_for_phase(cluster: Cluster, namespace: str, name: str, expected: str) -> None:
    wait_until(f"{name} {expected}", lambda: phase(cluster, namespace, name) == expected)


def run_pod(cluster: Cluster, namespace: str, name: str, spec: Json) -> str:
    """What a pod that ends by itself printed."""
    cluster.apply(pod(namespace, name, spec))
    wait_until(f"{name} ends", lambda: phase(cluster, namespace, name) in ("Succeeded", "Failed"))
    return cluster.kubectl("-n", namespace, "logs", name)


def test_two_pods_of_an_indexed_job_find_each_other_and_kubectl_follows_one_to_its_end(
    cluster: Cluster, namespace: str
) -> None:
    script = """
    other=$((1 - JOB_COMPLETION_INDEX))
    until getent ahostsv4 gang-$other.peers; do sleep 0.1; done
    echo "I am $(hostname), index $JOB_COMPLETION_INDEX"; sleep 1; echo done
    """
    cluster.apply(
        headless_service(namespace, "peers", "gang"),
        indexed_job(namespace, "gang", pod_spec(container(script), subdomain="peers"), hosts=2),
    )
    wait_until("both pods", lambda: len(pods_of(cluster, namespace)) == 2)
    first = pods_of(cluster, namespace)[0]["metadata"]["name"]
    wait_until("it runs", lambda: phase(cluster, namespace, first) != "Pending")
    followed = cluster.kubectl("-n", namespace, "logs", "-f", first).splitlines()
    assert followed[-2:] == ["I am gang-0, index 0", "done"]
    other = fetch(cluster, namespace, "pods", pods_of(cluster, namespace)[1]["metadata"]["name"])["status"]["podIP"]
    assert followed[0].split()[0] == other
    job = wait_until("the Job completes", lambda: condition(fetch(cluster, namespace, "jobs", "gang"), "Complete"))
    assert job["reason"] == "CompletionsReached"


def test_a_container_gets_what_its_pod_says(cluster: Cluster, namespace: str) -> None:
    metadata = {"name": "settings", "namespace": namespace}
    cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"STEPS": "7", "soul.md": "be kind"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"KEY": "s3cret"}},
    )
    main = container(
        """
        echo "id $(id -u):$(id -g)"; echo "$FROM_IMAGE $STEPS $KEY $WHERE $COMBINED"; cat /srv/soul/soul.md; echo
        touch /new 2>&1; touch /dev/shm/new && echo shm; findmnt -no FSTYPE -T /dev/shm; cat /var/run/up/before
        ls /run/secrets/kubernetes.io/serviceaccount; cat /etc/podinfo/label; echo; echo "$@"
        grep CapBnd /proc/self/status; unshare --user true 2>/dev/null || echo no namespaces
        echo the last word > /dev/termination-log
        """,
        envFrom=[{"configMapRef": {"name": "settings"}}],
        env=[
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "settings", "key": "KEY"}}},
            {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "COMBINED", "value": "$(WHERE)/$(STEPS) $$(STEPS) $(NOTHING)"},
        ],
        volumeMounts=[
            {"name": "soul", "mountPath": "/srv/soul"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "up", "mountPath": "/var/run/up"},
            {"name": "info", "mountPath": "/etc/podinfo"},
        ],
    )
    before = container("echo first > /up/before", name="before", volumeMounts=[{"name": "up", "mountPath": "/up"}])
    volumes = [
        {"name": "soul", "configMap": {"name": "settings", "items": [{"key": "soul.md", "path": "soul.md"}]}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "up", "emptyDir": {}},
        {
            "name": "info",
            "downwardAPI": {"items": [{"path": "label", "fieldRef": {"fieldPath": "metadata.labels['run']"}}]},
        },
    ]
    manifest = pod(namespace, "all", pod_spec(main, initContainers=[before], volumes=volumes))
    manifest["metadata"]["labels"] = {"run": "a"}
    cluster.apply(manifest)
    wait_for_phase(cluster, namespace, "all", "Succeeded")
    assert cluster.kubectl("-n", namespace, "logs", "all").splitlines() == [
        "id 1000:1000",
        "yes 7 s3cret cpu-0 cpu-0/7 $(STEPS) $(NOTHING)",
        "be kind",
        "touch: cannot touch '/new': Read-only file system",
        "shm",
        "tmpfs",
        "first",
        "ca.crt",
        "namespace",
        "token",
        "a",
        "",
        "CapBnd:\t0000000000000000",
        "no namespaces",
    ]
    (status,) = fetch(cluster, namespace, "pods", "all")["status"]["containerStatuses"]
    assert status["state"]["terminated"]["message"] == "the last word\n"


def test_hosts_of_a_slice_know_their_index_and_their_peers_and_other_pods_see_one_host(
    cluster: Cluster, namespace: str
) -> None:
    nodes = [v6e_node(f"slice-{i}", topology="2x4", machine="ct6e-standard-4t", pool="slice") for i in range(2)]
    cluster.add(*nodes)
    chips = {"resources": {"limits": {"google.com/tpu": "4"}}}
    told = "echo $TPU_WORKER_ID $TPU_WORKER_HOSTNAMES"
    fields = on("") | {"nodeSelector": {"cloud.google.com/gke-nodepool": "slice"}}
    two = indexed_job(namespace, "two", pod_spec(container(told, **chips), subdomain="s", **fields), hosts=2)
    cluster.apply(headless_service(namespace, "s", "two"), two)
    wait_until("it completes", lambda: condition(fetch(cluster, namespace, "jobs", "two"), "Complete"))
    names = [one["metadata"]["name"] for one in pods_of(cluster, namespace)]
    assert [cluster.kubectl("-n", namespace, "logs", name) for name in names] == [
        "0 two-0.s,two-1.s\n",
        "1 two-0.s,two-1.s\n",
    ]
    assert {one["spec"]["nodeName"] for one in pods_of(cluster, namespace)} == {"slice-0", "slice-1"}
    cluster.apply(indexed_job(namespace, "one", pod_spec(container(told, **chips), subdomain="s", **fields)))
    wait_until("it completes", lambda: condition(fetch(cluster, namespace, "jobs", "one"), "Complete"))
    assert cluster.kubectl("-n", namespace, "logs", "job/one") == "0 localhost\n"
    for node in nodes:
        cluster.preempt(node.name)


def test_a_preempted_pod_is_a_disruption_and_fails_its_job_by_the_policy(cluster: Cluster, namespace: str) -> None:
    cluster.add(v6e_node("spot-0"))
    script = "trap 'echo saved; exit 75' TERM; echo training; while :; do sleep 0.1; done"
    spec = pod_spec(container(script), **on("spot-0"))
    cluster.apply(indexed_job(namespace, "train", spec, **FAIL_ON_DISRUPTION))
    wait_until("it trains", lambda: [p for p in pods_of(cluster, namespace) if p["status"]["phase"] == "Running"])
    (running,) = pods_of(cluster, namespace)
    watching = cluster.api.watch(f"/api/v1/namespaces/{namespace}/pods")
    cluster.preempt("spot-0", seconds=5)
    seen = next(item for _, item in watching if item.get("status", {}).get("phase") == "Failed")
    watching.close()
    assert condition(seen, "DisruptionTarget")["reason"] == "TerminationByKubelet"
    assert seen["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 75
    failed = wait_until("the Job fails", lambda: condition(fetch(cluster, namespace, "jobs", "train"), "Failed"))
    assert failed["reason"] == "PodFailurePolicy"
    assert running["metadata"]["name"] in failed["message"] and "DisruptionTarget" in failed["message"]
    assert "spot-0" not in cluster.kubectl("get", "nodes", "-o", "name")


def test_a_pod_that_does_not_leave_in_time_is_killed(cluster: Cluster, namespace: str) -> None:
    cluster.add(v6e_node("spot-1"))
    cluster.apply(pod(namespace, "deaf", pod_spec(container("trap '' TERM; sleep 1000"), **on("spot-1"))))
    wait_for_phase(cluster, namespace, "deaf", "Running")
    watching = cluster.api.watch(f"/api/v1/namespaces/{namespace}/pods")
    began = time.monotonic()
    cluster.preempt("spot-1", seconds=2)
    assert 2 <= time.monotonic() - began < 8
    seen = next(item for _, item in watching if item.get("status", {}).get("phase") == "Failed")
    watching.close()
    assert seen["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    # A machine that is made anew may have the same name.
    cluster.add(v6e_node("spot-1"))
    assert run_pod(cluster, namespace, "next", pod_spec(container("echo again"), **on("spot-1"))) == "again\n"


def test_a_node_that_vanishes_reports_nothing_and_is_found_out_by_its_lease(cluster: Cluster, namespace: str) -> None:
    cluster.add(v6e_node("spot-2"))
    cluster.apply(pod(namespace, "lost", pod_spec(container("sleep 1000"), **on("spot-2"))))
    wait_for_phase(cluster, namespace, "lost", "Running")
    cluster.vanish("spot-2")
    assert phase(cluster, namespace, "lost") == "Running"

    def unreachable() -> bool:
        taints = cluster.api.get("/api/v1/nodes/spot-2")["spec"]["taints"]
        return ("node.kubernetes.io/unreachable", "NoExecute") in {(t["key"], t["effect"]) for t in taints}

    wait_until("the control plane notices", unreachable)
    lost = fetch(cluster, namespace, "pods", "lost")
    assert lost["status"]["phase"] == "Running" and not condition(lost, "Ready")
    assert not condition(lost, "DisruptionTarget")
    cluster.forget("spot-2")
    assert "spot-2" not in cluster.kubectl("get", "nodes", "-o", "name")


def test_a_hung_nodes_containers_go_on_and_its_pod_stays_terminating_until_it_is_back(
    cluster: Cluster, namespace: str
) -> None:
    cluster.add(v6e_node("spot-3"))
    cluster.apply(pod(namespace, "zombie", pod_spec(container("sleep 1000"), **on("spot-3"))))
    wait_for_phase(cluster, namespace, "zombie", "Running")
    (worker,) = cluster.kubelets["spot-3"].workers.values()
    slot = worker.slot("main")
    assert slot is not None and slot.container is not None
    process = psutil.Process(slot.container.pid)
    cluster.hang("spot-3")
    cluster.kubectl("-n", namespace, "delete", "pod", "zombie", "--wait=false", "--grace-period=1")
    with pytest.raises(subprocess.CalledProcessError, match="logs"):
        cluster.kubectl("-n", namespace, "logs", "zombie")
    time.sleep(3)
    assert process.is_running() and fetch(cluster, namespace, "pods", "zombie")["metadata"]["deletionTimestamp"]
    cluster.resume("spot-3")
    wait_until("it is gone", lambda: not pods_of(cluster, namespace))
    assert not process.is_running()


def test_an_image_that_nobody_built_is_waited_for_in_image_pull_back_off(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod(namespace, "typo", pod_spec(container("true", image="registry.example/nanocod:1"))))

    def waiting() -> Json:
        (status,) = fetch(cluster, namespace, "pods", "typo")["status"].get("containerStatuses") or [{}]
        found: Json = status.get("state", {}).get("waiting", {})
        return found if found.get("reason") == "ImagePullBackOff" else {}

    assert "registry.example/nanocod:1" in wait_until("it backs off", waiting)["message"]
    assert phase(cluster, namespace, "typo") == "Pending"


def test_a_root_pod_is_refused_by_pod_security_and_one_whose_image_is_root_by_the_node(
    cluster: Cluster, namespace: str, tools_image: Image
) -> None:
    asks_for_root = pod_spec(container("id", securityContext=RESTRICTED | {"runAsUser": 0, "runAsNonRoot": False}))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cluster.apply(pod(namespace, "root", asks_for_root))
    assert 'violates PodSecurity "restricted:latest"' in refused.value.stderr
    cluster.images.add(replace(tools_image, config={}), "rooted:1")
    cluster.apply(pod(namespace, "rooted", pod_spec(container("id", image="rooted:1"))))

    def waiting() -> Json:
        (status,) = fetch(cluster, namespace, "pods", "rooted")["status"].get("containerStatuses") or [{}]
        found: Json = status.get("state", {}).get("waiting", {})
        return found if found.get("reason") == "CreateContainerConfigError" else {}

    assert wait_until("the node refuses", waiting)["message"] == (
        "container has runAsNonRoot and image will run as root"
    )


@pytest.mark.skipif(not shutil.which("curl", path="/usr/bin"), reason="the pod asks the API with /usr/bin/curl")
def test_a_pod_may_do_in_the_api_what_its_role_says_and_the_audit_log_tells(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "create", "serviceaccount", "reader")
    cluster.kubectl("-n", namespace, "create", "role", "reads", "--verb=list", "--resource=jobs.batch")
    cluster.kubectl(
        "-n", namespace, "create", "rolebinding", "reads", "--role=reads", f"--serviceaccount={namespace}:reader"
    )
    script = """
    here=/var/run/secrets/kubernetes.io/serviceaccount
    ask() { curl -s -o /dev/null -w '%{http_code}\n' --cacert $here/ca.crt -H "Authorization: Bearer $(cat $here/token)" \
      https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT$1; }
    ask /apis/batch/v1/namespaces/$(cat $here/namespace)/jobs; ask /api/v1/namespaces/$(cat $here/namespace)/secrets
    """
    assert run_pod(cluster, namespace, "asks", pod_spec(container(script), serviceAccountName="reader")) == "200\n403\n"
    user = f"system:serviceaccount:{namespace}:reader"
    requests = [(one.verb, one.group, one.resource, one.code) for one in cluster.control_plane.audit(user)]
    assert requests == [("list", "batch", "jobs", 200), ("list", "", "secrets", 403)]


def test_a_deployment_is_available_once_its_port_answers_and_leaves_nothing_when_deleted(
    cluster: Cluster, namespace: str
) -> None:
    script = """
    sleep 2; exec perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => $ENV{POD_IP}, LocalPort => 8080,
      Listen => 5, ReuseAddr => 1) or die; $SIG{TERM} = sub { exit 0 };
      while (1) { $c = $s->accept or next; $c->recv($b, 999); print $c "HTTP/1.0 200 OK\r\n\r\nok"; close $c }'
    """
    probe = {"httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 1}
    serving = container(
        script,
        env=[{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        ports=[{"name": "web", "containerPort": 8080}],
        readinessProbe=probe,
    )
    cluster.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod_spec(serving, restartPolicy="Always")},
            },
        }
    )
    wait_until("it runs", lambda: [p for p in pods_of(cluster, namespace) if p["status"]["phase"] == "Running"])
    assert not condition(pods_of(cluster, namespace)[0], "Ready")
    available = wait_until("available", lambda: condition(fetch(cluster, namespace, "deployments", "web"), "Available"))
    assert available["reason"] == "MinimumReplicasAvailable"
    cluster.kubectl("-n", namespace, "delete", "deployment", "web", "--timeout=30s")
    wait_until("no pod is left", lambda: not pods_of(cluster, namespace))


def test_a_container_that_crashes_is_started_again_later_and_later(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod(namespace, "crash", pod_spec(container("echo boom; exit 3"), restartPolicy="Always")))

    def backing_off() -> Json:
        (status,) = fetch(cluster, namespace, "pods", "crash")["status"].get("containerStatuses") or [{}]
        return status if status.get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff" else {}

    status = wait_until("it backs off", backing_off)
    assert status["lastState"]["terminated"]["exitCode"] == 3 and status["restartCount"] >= 1
    assert cluster.kubectl("-n", namespace, "logs", "crash", "--previous") == "boom\n"


def test_a_container_that_is_alive_no_more_is_started_again(cluster: Cluster, namespace: str) -> None:
    probe = {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 2}
    spec = pod_spec(
        container("sleep 1000", livenessProbe=probe), restartPolicy="Always", terminationGracePeriodSeconds=1
    )
    cluster.apply(pod(namespace, "stuck", spec))

    def again() -> Json:
        (status,) = fetch(cluster, namespace, "pods", "stuck")["status"].get("containerStatuses") or [{}]
        return status if status.get("restartCount", 0) > 0 else {}

    # As process 1 it hears no SIGTERM that it has no handler for.
    assert wait_until("it is restarted", again)["lastState"]["terminated"]["exitCode"] == 137
    cluster.kubectl("-n", namespace, "delete", "pod", "stuck", "--grace-period=1")


def test_running_pods_survive_a_restart_of_the_api_server(cluster: Cluster, namespace: str) -> None:
    cluster.apply(indexed_job(namespace, "through", pod_spec(container("echo a; sleep 4; echo b"))))
    wait_until("it runs", lambda: [p for p in pods_of(cluster, namespace) if p["status"]["phase"] == "Running"])
    cluster.control_plane.restart_api_server()
    wait_until("it completes", lambda: condition(fetch(cluster, namespace, "jobs", "through"), "Complete"))
    assert cluster.kubectl("-n", namespace, "logs", "job/through") == "a\nb\n"
    assert run_pod(cluster, namespace, "after", pod_spec(container("echo new"))) == "new\n"


def test_it_is_known_what_a_container_uses(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod(namespace, "busy", pod_spec(container("while :; do :; done"))))
    wait_for_phase(cluster, namespace, "busy", "Running")

    wait_until("it has worked", lambda: cluster.usage()[namespace, "busy", "main"][1] > 0.2)
    memory, _ = cluster.usage()[namespace, "busy", "main"]
    assert 0 < memory < 1 << 28
    cluster.kubectl("-n", namespace, "delete", "pod", "busy", "--grace-period=1")


def test_nothing_of_a_cluster_outlives_a_test_that_is_killed(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import host_image
from tests.cluster.images import Images
from tests.cluster.manifests import container, pod, pod_spec
from tests.cluster.node import cpu_node
from tests.cluster.processes import wait_until
root = Path(sys.argv[1]) / "root"
root.mkdir()
images = Images()
images.add(host_image(root), "tools:1")
with Cluster(images) as cluster:
    cluster.add(cpu_node("cpu-0"))
    cluster.apply(pod("default", "sleeps", pod_spec(container("sleep 1000"))))
    wait_until("it runs", lambda: cluster.api.get("/api/v1/namespaces/default/pods/sleeps")["status"]["phase"] == "Running")
    print(cluster.folder, flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert (folder / "control-plane").is_dir()
        family = psutil.Process(owner.pid).children(recursive=True)
        names = {process.name() for process in family}
        assert {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "bwrap", "sleep"} <= names
    finally:
        owner.kill()
        owner.wait()
        if owner.stdout:
            owner.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    for layer in folder.glob("nodes/*/*/*/*.layer"):
        remove(layer)
    shutil.rmtree(folder)
