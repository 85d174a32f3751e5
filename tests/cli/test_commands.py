"""The `dmq` command as a user meets it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dmq_fx.checkpoint import Checkpoint
from dmq_fx.cli import app

COMMANDS = ("plan", "validate", "compile", "inspect", "graph", "diff", "explain", "sample", "eval", "reference")


def dmq(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = dmq(command, "--help")
    assert result.exit_code == 0
    assert f"dmq {command} " in plain(result.stdout).partition("Example")[2]


def test_plan(pipeline_folder: Path) -> None:
    result = dmq("plan", "ptq/w4a6", "--model", pipeline_folder, "--set", "schemes.body.weight.bits=3")
    assert result.exit_code == 0, result.stderr
    lines = plain(result.stdout).splitlines()
    assert lines[0].startswith("ptq/w4a6 on ")
    row = next(line.split() for line in lines if line.startswith("mid_block.resnets.0.conv1 "))
    assert row == ["mid_block.resnets.0.conv1", "conv2d", "block_in", "32×32×3×3", "body", "3", "6", "3.6"]
    assert any(" sites quantized" in line for line in lines) and any("GBOPs" in line for line in lines)


def test_plan_json(pipeline_folder: Path) -> None:
    result = dmq("plan", "ptq/w8a8", "--model", pipeline_folder, "--json")
    found = json.loads(result.stdout)
    assert set(found) == {"sites", "totals"}
    wanted = {"name", "op", "roles", "shape", "scheme", "weight_bits", "activation_bits", "passes", "rule"}
    assert all(wanted <= set(site) for site in found["sites"])
    assert found["totals"]["mean_weight_bits"] == 8.0


def test_plan_of_a_config_alone(pipeline_folder: Path) -> None:
    result = dmq("plan", "ptq/w8a8", "--model", f"config:{pipeline_folder / 'unet' / 'config.json'}", "--json")
    assert result.exit_code == 0, result.stderr


def test_compile_prints_and_writes(pipeline_folder: Path, tmp_path: Path, fast: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    options = [argument for override in fast for argument in ("--set", override)]
    result = dmq("compile", "ptq/w8a8", "--model", pipeline_folder, "-o", out, "--json", "--seed", 3, *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"output", "digest", "seconds", "sites", "quantized_sites", "mean_weight_bits", "bytes"} <= set(found)
    assert found["bytes"] == sum(f.stat().st_size for f in out.iterdir() if f.name != "manifest.json")
    assert "calibration.seed=3" in (out / "recipe.lock.yaml").read_text()
    again = dmq("compile", "ptq/w8a8", "--model", pipeline_folder, "-o", out, *options)
    assert again.exit_code == 2
    assert "there is an artifact here already" in again.stderr and "--force" in again.stderr


def test_gate_that_fails(pipeline_folder: Path, tmp_path: Path, fast: tuple[str, ...]) -> None:
    recipe = tmp_path / "strict.yaml"
    recipe.write_text(
        "dmq: 1\nname: test/strict\nextends: weight-only/w8\n"
        "expect: {weight_megabytes: {max: 0.001}, mean_weight_bits: {max: 8}, final_mse: {max: 0.5}}\n"
    )
    options = [argument for override in fast for argument in ("--set", override)]
    result = dmq("compile", recipe, "--model", pipeline_folder, "-o", tmp_path / "out", *options)
    assert result.exit_code == 3
    assert re.search(r"weight_megabytes is 0\.\d+, expected at most 0\.001", plain(result.stderr))
    assert "mean_weight_bits is" not in result.stderr and "final_mse is" not in result.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


def test_an_interrupted_compile_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"

    def interrupted(*args: object, output: str, resume: bool, **kwargs: object) -> None:
        if resume:
            Checkpoint(output, resume=True).section("00-les").save({}, {}, force=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("dmq_fx.compiler.compile", interrupted)
    result = dmq("compile", "ptq/w8a8", "-o", output)
    assert (result.exit_code, plain(result.stderr).strip()) == (130, "interrupted")
    result = dmq("compile", "ptq/w8a8", "-o", output, "--resume", "--json")
    assert (result.exit_code, result.stdout) == (130, "")
    assert plain(result.stderr).strip().splitlines() == [
        f"no checkpoint beside {output}: starting from the beginning",
        "interrupted: the same command with --resume goes on from here",
    ]


def test_inspect(artifact: Path) -> None:
    result = dmq("inspect", artifact, "--site", "*.conv_shortcut")
    assert result.exit_code == 0, result.stderr
    errors = re.findall(r"conv_shortcut  conv2d · (?:.* · )?([0-9.]+) dB", result.stdout)
    assert len(errors) == 5 and all(25 < float(error) < 70 for error in errors)  # of 8 bits
    assert "W8 per-channel sym · A8 per-tensor asym ×4 slots" in result.stdout and "conv_in" not in result.stdout
    assert "\x1b" not in result.stdout and "MB as papers count" in result.stdout


def test_inspect_json(artifact: Path) -> None:
    found = json.loads(dmq("inspect", artifact, "--json").stdout)
    assert {"recipe", "digest", "sites"} <= set(found)
    wanted = {"name", "op", "roles", "scheme", "sqnr_db", "bytes", "weight", "activation"}
    assert all(wanted <= set(site) for site in found["sites"])
    product = next(site for site in found["sites"] if site["op"] == "attention")
    assert product["scheme"] == "none" and product["sqnr_db"] is None


def test_inspect_of_a_site_that_is_not_there(artifact: Path) -> None:
    result = dmq("inspect", artifact, "--site", "conv_inn")
    assert result.exit_code == 2
    assert "no site matches 'conv_inn'" in result.stderr and "did you mean 'conv_in'" in result.stderr


def test_sample_writes_a_grid(artifact: Path, tmp_path: Path) -> None:
    single, both = tmp_path / "single.png", tmp_path / "both.png"
    assert dmq("sample", artifact, "-n", 5, "-o", single, "--steps", 2).exit_code == 0
    result = dmq("sample", artifact, "-n", 5, "-o", both, "--steps", 2, "--compare", "--batch", 2)
    assert result.exit_code == 0, result.stderr
    with Image.open(single) as one, Image.open(both) as two:
        assert two.height == one.height and two.width > 1.8 * one.width


def test_sample_into_a_folder_that_is_not_there(artifact: Path, tmp_path: Path) -> None:
    result = dmq("sample", artifact, "-n", 1, "-o", tmp_path / "no" / "grid.png", "--steps", 1)
    assert result.exit_code == 2
    assert "cannot write the picture there" in result.stderr


def test_eval_json(artifact: Path) -> None:
    found = json.loads(dmq("eval", artifact, "--samples", 3, "--steps", 4, "--batch", 2, "--json").stdout)
    assert {"samples", "steps", "final_mse", "final_psnr", "trajectory_mse"} <= set(found)
    assert found["samples"] == 3 and found["steps"] == 4 == len(found["trajectory_mse"])
    assert all(0 < value < 0.05 for value in found["trajectory_mse"])
    assert all(0.95 < value <= 1 for value in found["trajectory_cosine"])
    assert 20 < found["final_psnr"] < 80
    assert found["prompts"] == [] and found["guidance_scale"] is None


def test_eval_with_metrics(artifact: Path, tmp_path: Path) -> None:
    """PSNR alone needs no extractor; the table says what was measured on how many images."""
    options = ("--metrics", "psnr", "-n", 3, "--steps", 2, "--repeats", 2, "--samples-dir", tmp_path)
    result = dmq("eval", artifact, *options)
    assert result.exit_code == 0, result.stderr
    assert "metrics of 2 sets of 3 images" in result.stdout and "±" in result.stdout.splitlines()[-1]
    found = json.loads(dmq("eval", artifact, *options, "--json").stdout)
    assert found["quality"]["scores"]["psnr"]["mean"] > 20 and found["samples"] == 3
    assert len(found["prediction_mse_same_input"]) == 2


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[str | Path, ...]:
    """Options that give three prompts, which are `PROMPTS`."""
    path = tmp_path / "prompts.txt"
    path.write_text("a house\na tree\n")
    return ("--prompt", "a car", "--prompts-file", path, "--guidance-scale", "2.5")


PROMPTS = ["a car", "a house", "a tree"]


def test_sample_writes_where_the_images_are_from(
    text_to_image_artifact: Path, tmp_path: Path, prompts: tuple[str | Path, ...]
) -> None:
    picture = tmp_path / "grid.png"
    result = dmq("sample", text_to_image_artifact, "-n", 2, "--steps", 1, "-o", picture, *prompts, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["prompts"], found["guidance_scale"]) == (PROMPTS, 2.5)
    with Image.open(picture) as image:
        facts = json.loads(image.text["dmq"])
    assert facts["recipe"] == "ptq/w8a8" and facts["prompts"] == PROMPTS
    assert len(facts["digest"]) == 64


def test_eval_says_what_prompts_its_images_are_of(
    text_to_image_artifact: Path, prompts: tuple[str | Path, ...]
) -> None:
    """With metrics and without."""
    for metrics in ((), ("--metrics", "psnr")):
        result = dmq("eval", text_to_image_artifact, "-n", 2, "--steps", 1, *prompts, *metrics, "--json")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert (found["prompts"], found["guidance_scale"]) == (PROMPTS, 2.5)
        assert found["quality"] is None if not metrics else found["quality"]["prompts"] == PROMPTS


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_prompts_that_no_image_is_of_are_not_recorded(
    command: str, artifact: Path, text_to_image_artifact: Path, tmp_path: Path
) -> None:
    output = ("-o", tmp_path / "grid.png") if command == "sample" else ()
    options = ("-n", 1, "--steps", 1, *output)
    refused = dmq(command, artifact, *options, "--prompt", "a car")
    assert refused.exit_code == 2 and "takes no prompts, and received 'a car'" in refused.stderr
    missing = dmq(command, text_to_image_artifact, *options)
    assert missing.exit_code == 2 and "hint: give --prompt TEXT, or --prompts-file FILE" in missing.stderr
    assert "recipe" not in missing.stderr and not (tmp_path / "grid.png").exists()


def test_reference_statistics(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "test"
    folder.mkdir(parents=True)
    for index in range(4):
        Image.effect_noise((32, 32), 20 + 30 * index).save(folder / f"{index}.png")
    output = tmp_path / "noise.safetensors"
    options = ("--extractor", "mnist", "--subset", "test", "-o", output)
    found = json.loads(dmq("reference", tmp_path / "images", *options, "--json").stdout)
    assert found == {"output": str(output), "source": "images/test", "extractor": "mnist", "images": 4}
    assert output.stat().st_size > 1000
    refused = dmq("reference", tmp_path / "images", "--extractor", "mnist", "-o", tmp_path / "no" / "x.safetensors")
    assert refused.exit_code == 2 and "statistics cannot be written there" in refused.stderr


def test_model_that_moved(artifact: Path, tmp_path: Path, pipeline_folder: Path) -> None:
    result = dmq("eval", artifact, "--model", tmp_path / "gone")
    assert result.exit_code == 2
    other = dmq("eval", artifact, "--model", "builtin:ddpm-cifar10-vehicles")
    assert other.exit_code == 2
    assert "is not the one that this artifact was compiled from" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "ptq/w8a9"), "did you mean"),
        (("plan", "ptq/w8a8", "--model", "builtin:ddpm-mnistt"), "did you mean"),
        (("plan", "ptq/w8a8", "--set", "schemes.body.weight.bit=3"), "did you mean"),
        (("plan", "ptq/w8a8", "--set", "schemes.body.weight.bits=17"), "bits must be between 2 and 8, got 17"),
        (("compile", "nowhere.yaml"), "nowhere.yaml"),
        (("compile", "ptq/w8a8", "--dtype", "floatt32"), "--dtype: unknown type 'floatt32'"),
        (("compile", "ptq/w8a8", "--device", "bogus"), "--device: unknown device 'bogus'"),
        (("plan", "ptq/w8a8", "--set", "backend=fake_quan"), "did you mean 'fake_quant'?"),
        (("inspect", "nowhere"), "no artifact at nowhere"),
        (("load",), "No such command"),
    ],
)
def test_bad_input_exits_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no `out` lies
    result = dmq(*arguments)
    assert result.exit_code == 2, result.output
    assert message in plain(result.stderr)
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_fault_of_ours_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("dmq_fx.compiler.plan", broken)
    result = dmq("plan", "ptq/w8a8")
    assert result.exit_code == 1
    assert "a fault of dmq itself: RuntimeError('broken')" in plain(result.stderr)


def test_reference_of_nothing_fetches_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmq_fx.quality.features.load_extractor", None)
    result = dmq("reference", tmp_path / "nothing", "-o", tmp_path / "x.safetensors")
    assert result.exit_code == 2 and "there is no such file or folder" in result.stderr


def test_a_backend_that_cannot_run_here_is_said_before_the_compile(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmq_fx.compiler.trace", None)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    out = tmp_path / "out"
    result = dmq("compile", "ptq/w8a8", "--model", pipeline_folder, "-o", out, "--verify-backend", "x86_int8")
    assert result.exit_code == 2 and "needs an x86 CPU with AVX-512 and VNNI" in result.stderr and not out.exists()


def test_version() -> None:
    result = dmq("--version")
    assert result.exit_code == 0 and re.fullmatch(r"dmq \d+\.\d+\.\d+\n", result.stdout)
