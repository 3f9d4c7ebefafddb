"""Renders the chart and judges what comes out: by Kubernetes' own schemas, and by its profile `restricted` for pods.

    check.py CHART OUT     writes OUT/<case>.yaml, and OUT/<case>.<name>.toml for each configuration in it
"""

import pathlib
import subprocess
import sys

import kubernetes_validate
import yaml

CHART, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
HELM = pathlib.Path(sys.executable).with_name("helm")
GIVEN = ["--set", "trustDomain=example.org", "--set", "clusterName=prod"]

CASES = {
    "plain": [],
    "group": ["--set", "server.replicas=3", "--set", "server.postgres.secretName=db"],
    "agents-only": ["--set", "server.enabled=false", "--set", "agent.serverAddress=server.example.org:8081"],
    "no-gpu": ["--set", "agent.gpu=false", "--set", "agent.kubelet.skipVerification=true"],
    "labels": ["--set", "server.allowedNodeLabelKeys={nvidia.com/gpu.product}", "--set", "server.storage.className=fast"],
}

REFUSED = {
    "no trust domain": (["--set", "clusterName=prod"], "trustDomain"),
    "a misspelt value": (GIVEN + ["--set", "servre.port=1"], "servre"),
    "a group without a database": (GIVEN + ["--set", "server.replicas=2"], "shares a database"),
    "no server anywhere": (GIVEN + ["--set", "server.enabled=false"], "agent.serverAddress"),
}


def render(arguments, version="1.33"):
    command = [HELM, "template", "bonafide", CHART, "--namespace", "bonafide", "--kube-version", version]
    return subprocess.run([*map(str, command), *arguments], capture_output=True, text=True, check=False)


def restricted(name, template):
    """The profile `restricted` of the pod security standards, as far as these pods could break it."""
    spec = template["spec"]
    pod = spec.get("securityContext", {})
    assert not any(spec.get(key) for key in ("hostPID", "hostNetwork", "hostIPC")), name
    assert pod.get("runAsNonRoot") is True and pod["runAsUser"] != 0, name
    assert pod["seccompProfile"]["type"] == "RuntimeDefault", name
    for volume in spec["volumes"]:
        assert set(volume) & {"configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim"}, volume
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["readOnlyRootFilesystem"] is True, name


def rights(objects):
    """Every verb on every resource that a role of the chart gives."""
    return {
        (document["metadata"]["name"], verb, resource)
        for document in objects
        if document["kind"] in ("Role", "ClusterRole")
        for rule in document["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def judge(case, arguments):
    result = render(GIVEN + arguments)
    assert result.returncode == 0, f"{case}: {result.stderr}"
    (OUT / f"{case}.yaml").write_text(result.stdout)
    objects = [document for document in yaml.safe_load_all(result.stdout) if document]
    assert objects, case
    for document in objects:
        for version in ("1.30", "1.33", "1.37"):
            kubernetes_validate.validate(document, version, strict=True)
        for name, text in (document.get("data") or {}).items():
            if name.endswith(".toml"):
                (OUT / f"{case}.{name}").write_text(text)
        if document["kind"] == "StatefulSet":
            restricted(case, document["spec"]["template"])
        if document["kind"] == "DaemonSet":
            container = document["spec"]["template"]["spec"]["containers"][0]["securityContext"]
            assert container.get("privileged") is not True, case
            assert container["capabilities"]["drop"] == ["ALL"], case
    return objects


def main():
    for case, arguments in CASES.items():
        objects = judge(case, arguments)
        if case == "plain":
            assert rights(objects) == {
                ("bonafide-bonafide-server", "create", "tokenreviews"),
                ("bonafide-bonafide-server", "get", "pods"),
                ("bonafide-bonafide-server", "get", "nodes"),
                ("bonafide-server", "patch", "configmaps"),
                ("bonafide-bonafide-agent", "get", "nodes/pods"),
            }, rights(objects)
    for case, (arguments, reason) in REFUSED.items():
        result = render(arguments)
        assert result.returncode != 0 and reason in result.stderr, f"{case}: {result.stderr}"
    print("PASS")


main()
