"""Every file in deploy/, checked by the tool that will read it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from receiver.runtime.metrics import Metrics
from tests.support.processes import ROOT

DEPLOY = ROOT / "deploy"


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed, and only it can check its file; .ci/run installs it")
    return found


def run(
    *command: str, directory: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, **(environment or {})}
    return subprocess.run(command, cwd=directory, env=full, capture_output=True, text=True)


def compose() -> list[str]:
    if shutil.which("docker") and run("docker", "compose", "version").returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("docker-compose is not installed, and only it can check its file; .ci/run installs it")


def copied(directory: Path, *names: str) -> None:
    for name in names:
        shutil.copy(DEPLOY / name, directory / name)


def test_compose_describes_a_receiver_that_only_caddy_can_reach(tmp_path: Path) -> None:
    command = [*compose(), "-f", "compose.yaml", "config"]
    copied(tmp_path, "compose.yaml", "Dockerfile", "Caddyfile")
    (tmp_path / ".env").write_text("DOMAIN=hooks.example.com\nFREEPIK_API_KEY=abc\n")
    done = run(*command, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "RECEIVER_PUBLIC_URL: https://hooks.example.com" in done.stdout
    (tmp_path / ".env").write_text("FREEPIK_API_KEY=abc\n")
    without = run(*command, directory=tmp_path)
    assert without.returncode != 0
    assert "deploy/.env" in without.stderr


def test_compose_gives_provider_keys_to_the_workers_alone(tmp_path: Path) -> None:
    command = [*compose(), "-f", "compose.postgresql.yaml", "config"]
    copied(tmp_path, "compose.postgresql.yaml", "Dockerfile", "Caddyfile", "postgresql.env.example")
    example = (tmp_path / "postgresql.env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"^([A-Z_]+)=$", r"\1=a-value", example, flags=re.MULTILINE))
    done = run(*command, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["web"]["command"][:3] == ["receiver", "serve", "--no-workers"]
    holders = {name for name, service in services.items() if "FREEPIK_API_KEY" in service.get("environment", {})}
    assert holders == {"worker"}
    assert "pgbouncer" in services["web"]["environment"]["RECEIVER_DATABASE_URL"]
    assert "postgresql:5432" in services["web"]["environment"]["RECEIVER_DATABASE_LISTEN_URL"]


@pytest.mark.parametrize("path", sorted((DEPLOY / "kubernetes").glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document["kind"] != "Kustomization"]
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    for document in documents:
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            security = container["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
            secrets = {source["secretRef"]["name"] for source in container["envFrom"]}
            assert ("upscale-receiver-providers" in secrets) == (container["name"] in ("worker", "receiver"))


def test_no_image_is_taken_without_a_version() -> None:
    images = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for path in (*DEPLOY.glob("compose*.yaml"), *(DEPLOY / "kubernetes").glob("*.yaml")):
        images += re.findall(r"^\s+image: (\S+)", path.read_text(), re.MULTILINE)
    assert len(images) >= 10
    version = r"[a-z/-]+:v?\d+\.\d+(\.\d+)?[a-z0-9.-]*"
    assert [image for image in images if not re.fullmatch(version, image)] == []


def test_caddy_takes_the_caddyfile(tmp_path: Path) -> None:
    settings = {"DOMAIN": "hooks.example.com", "UPSTREAM": "receiver:8000"}
    homes = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    arguments = ["validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile")]
    done = run(tool("caddy"), *arguments, environment=settings | homes)
    assert done.returncode == 0, done.stderr


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    done = run(tool("nginx"), "-t", "-c", str(nginx_configuration(tmp_path)))
    assert done.returncode == 0, done.stderr


def nginx_configuration(directory: Path) -> Path:
    """The example with paths and a certificate that exist."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    what = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=hooks.example.com"
    made = run(tool("openssl"), *what.split(), "-keyout", str(key), "-out", str(certificate))
    assert made.returncode == 0, made.stderr
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in {
        "/etc/letsencrypt/live/hooks.example.com/fullchain.pem": str(certificate),
        "/etc/letsencrypt/live/hooks.example.com/privkey.pem": str(key),
        "/var/log/nginx": str(directory),
        "/run/nginx.pid": str(directory / "nginx.pid"),
    }.items():
        assert old in text
        text = text.replace(old, new)
    path = directory / "nginx.conf"
    path.write_text(text)
    return path


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    units = []
    for path in sorted(DEPLOY.glob("*.service")) + sorted(DEPLOY.glob("*.timer")):
        unit = tmp_path / path.name
        unit.write_text(path.read_text().replace("/opt/receiver/bin/receiver", "/bin/true"))
        units.append(str(unit))
    done = run(tool("systemd-analyze"), "verify", *units)
    complaints = [line for line in done.stderr.splitlines() if "receiver" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_service_is_hardened() -> None:
    done = run(
        tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", str(DEPLOY / "receiver.service")
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_prometheus_takes_the_alert_rules() -> None:
    done = run(tool("promtool"), "check", "rules", str(DEPLOY / "alerts.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_name_only_metrics_and_labels_that_exist() -> None:
    labels: dict[str, set[str]] = {}
    for instrument in vars(Metrics()).values():
        if not hasattr(instrument, "_labelnames"):
            continue
        for family in instrument.describe():
            for suffix in ("", "_total", "_bucket", "_sum", "_count"):
                labels[family.name + suffix] = {*instrument._labelnames, *(["le"] if suffix == "_bucket" else [])}
    used = re.findall(r"\b(receiver_[a-z_]+)(?:\{([^}]*)\})?", (DEPLOY / "alerts.yml").read_text())
    assert len(used) >= 15
    for name, matchers in used:
        assert name in labels, name
        assert set(re.findall(r"(\w+)\s*[=!]~?", matchers)) <= labels[name], (name, matchers)


def test_pinned_requirements_hold_hashes_and_no_address() -> None:
    for name in ("requirements.txt", "requirements-build.txt"):
        text = (DEPLOY / name).read_text()
        pins = re.findall(r"^([a-z0-9-]+)==\S+ ", text, re.MULTILINE)
        assert len(pins) == len(set(pins)) > 5
        assert text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text
        assert "index-url" not in text.partition("\n\n")[0].replace("--no-emit-index-url", "")


def test_every_dependency_is_pinned() -> None:
    wanted = re.findall(
        r'^    "([a-z0-9-]+)[\[><=;]', (ROOT / "pyproject.toml").read_text().split("[project.optional")[0], re.M
    )
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (DEPLOY / "requirements.txt").read_text(), re.MULTILINE))
    assert len(wanted) > 15
    assert [name for name in wanted if name not in pinned] == []


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_work_in_a_clean_directory(tmp_path: Path) -> None:
    """Its RUN lines of the first stage, with other paths and without an image; then what the image would run."""
    source = tmp_path / "source"
    shutil.copytree(DEPLOY, source / "deploy")
    for name in ("receiver", "submitter"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    first_stage = (DEPLOY / "Dockerfile").read_text().split("\nFROM ")[1]
    steps = re.findall(r"^RUN ((?:[^\n]*\\\n)*[^\n]*)$", first_stage, re.MULTILINE)
    assert len(steps) == 3
    for step in steps:
        command = step.replace("\\\n", " ").replace("/opt/", f"{tmp_path}/opt/")
        done = run("sh", "-euc", re.sub(r"(?<![\w/])python -m", f"{sys.executable} -m", command), directory=source)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    program = tmp_path / "opt" / "receiver" / "bin" / "receiver"
    done = run(str(program), "config", "--json", directory=tmp_path, environment={"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"]
    assert run(str(program), "migrate", directory=tmp_path, environment={"PYTHONPATH": ""}).returncode == 0
    assert not (tmp_path / "opt" / "receiver" / "bin" / "pip").exists()
    assert list((tmp_path / "opt" / "receiver").rglob("receiver/__pycache__/app.*.pyc"))  # the image can't write it
