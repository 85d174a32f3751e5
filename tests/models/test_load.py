"""Every kind of source, and what is said about those that cannot be loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from catalog import FULL, tiny_model
from diffusers import DDIMPipeline, DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from dmq_fx.errors import ModelError
from dmq_fx.models import builtin_names, load_denoiser_on_meta, load_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with a tiny UNet."""
    folder = tmp_path_factory.mktemp("pipeline")
    DDIMPipeline(tiny_model("ddpm"), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline_folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def assert_equal_weights(left: nn.Module, right: nn.Module) -> None:
    wanted = right.state_dict()
    assert left.state_dict().keys() == wanted.keys()
    for name, tensor in left.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_pipeline_folder_gives_the_denoiser_inside_its_pipeline(saved: Path) -> None:
    loaded = load_model(str(saved))
    assert (loaded.component, loaded.class_name, loaded.origin) == ("unet", "UNet2DModel", str(saved))
    assert isinstance(loaded.pipeline, DDIMPipeline)
    assert loaded.pipeline.unet is loaded.denoiser
    assert_equal_weights(loaded.denoiser, tiny_model("ddpm"))
    assert loaded.has_weights
    assert not loaded.denoiser.training
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())
    assert loaded.config["block_out_channels"] == [8, 16, 24]


def test_denoiser_folder_gives_the_denoiser_alone(saved: Path) -> None:
    loaded = load_model(saved / "unet")
    assert loaded.pipeline is None
    assert_equal_weights(loaded.denoiser, tiny_model("ddpm"))


def test_component_at_the_top_of_a_pipeline_folder(pipeline_folder: Path) -> None:
    """Some published pipelines (google/ddpm-cifar10-32) keep the denoiser beside model_index.json."""
    for path in (pipeline_folder / "unet").iterdir():
        path.rename(pipeline_folder / path.name)
    (pipeline_folder / "unet").rmdir()
    whole, bare = load_model(pipeline_folder), load_model(pipeline_folder, weights=False)
    assert_equal_weights(whole.denoiser, tiny_model("ddpm"))
    assert not bare.has_weights and whole.config.items() >= bare.config.items() and bare.config["in_channels"] == 4


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_models_load(name: str) -> None:
    loaded = load_model(f"builtin:{name}")
    assert loaded.has_weights
    assert loaded.pipeline is not None


def test_dtype_is_that_asked_for(saved: Path) -> None:
    loaded = load_model(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.denoiser.parameters()} == {torch.bfloat16}


def test_python_objects_are_used_as_they_are() -> None:
    denoiser = tiny_model("ddpm").train().requires_grad_(True)
    loaded = load_model(denoiser)
    assert loaded.denoiser is denoiser
    assert not denoiser.training
    pipeline = DDIMPipeline(denoiser, DDIMScheduler())
    assert load_model(pipeline).pipeline is pipeline
    assert load_model(pipeline).denoiser is denoiser
    assert load_model(nn.Linear(2, 2)).config == {}


def test_object_of_another_kind() -> None:
    with pytest.raises(ModelError, match="a model cannot be a int"):
        load_model(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["pipeline", "denoiser", "config"])
def test_meta_reads_the_config_only(pipeline_folder: Path, form: str) -> None:
    (pipeline_folder / "unet" / WEIGHTS).unlink()
    source = {
        "pipeline": str(pipeline_folder),
        "denoiser": str(pipeline_folder / "unet"),
        "config": f"config:{pipeline_folder / 'unet' / 'config.json'}",
    }[form]
    loaded = load_denoiser_on_meta(source)
    assert not loaded.has_weights
    assert loaded.component == "unet"
    assert {parameter.device.type for parameter in loaded.denoiser.parameters()} == {"meta"}


def test_config_source_needs_no_weights() -> None:
    assert not load_model(f"config:{FULL['ddpm-cifar10']}").has_weights


def test_meta_and_loaded_configs_are_equal(saved: Path) -> None:
    assert load_denoiser_on_meta(saved).config == load_model(saved).config


def test_sharded_weights(pipeline_folder: Path) -> None:
    unet = pipeline_folder / "unet"
    tensors = load_file(unet / WEIGHTS)
    (unet / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, unet / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert_equal_weights(load_model(unet).denoiser, tiny_model("ddpm"))
    (unet / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"b\.safetensors: the file is in the index, but does not exist"):
        load_model(unet)
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": "../../secret"}}))
    with pytest.raises(ModelError, match="outside of its folder"):
        load_model(unet)


def test_variant(pipeline_folder: Path) -> None:
    unet = pipeline_folder / "unet"
    (unet / WEIGHTS).rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ModelError, match="variant='fp16'"):
        load_model(unet)
    assert_equal_weights(load_model(unet, variant="fp16").denoiser, tiny_model("ddpm"))


def test_pickled_weights_only_on_request(pipeline_folder: Path) -> None:
    unet = pipeline_folder / "unet"
    torch.save(load_file(unet / WEIGHTS), unet / "diffusion_pytorch_model.bin")
    (unet / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="pickled weights are read only with allow_pickle=True"):
        load_model(unet)
    assert_equal_weights(load_model(unet, allow_pickle=True).denoiser, tiny_model("ddpm"))


class Harmful:
    """Would create a file if it were unpickled as code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_pickled_code_is_never_run(pipeline_folder: Path, tmp_path: Path) -> None:
    unet = pipeline_folder / "unet"
    (unet / WEIGHTS).unlink()
    torch.save({"weight": Harmful(tmp_path / "touched")}, unet / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="the weights cannot be read"):
        load_model(unet, allow_pickle=True)
    assert not (tmp_path / "touched").exists()


def test_code_of_a_pipeline_is_never_run(pipeline_folder: Path) -> None:
    index = pipeline_folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "scheduler": ["subprocess", "Popen"]}))
    with pytest.raises(ModelError, match="component 'scheduler' comes from 'subprocess'"):
        load_model(pipeline_folder)


def damage_config(folder: Path, **values: object) -> None:
    path = folder / "unet" / "config.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": None}, r"config\.json: '_class_name' is missing"),
        ({"_class_name": 3}, r"config\.json: '_class_name' is 3"),
        ({"_class_name": "UNet2DModle"}, r"no class 'UNet2DModle'\n  hint: did you mean 'UNet2DModel'"),
        ({"_class_name": "DDIMScheduler"}, r"diffusers\.DDIMScheduler is not a model"),
        ({"_class_name": "os.system"}, r"no class 'os\.system'"),
        ({"down_block_types": ["Nothing"] * 3}, r"UNet2DModel cannot be built from this config: .*Nothing"),
        ({"block_out_channels": [8, 16, 32]}, r"has shape .* and the config asks for"),
        ({"layers_per_block": 2}, r"the weights do not fit the config: \d+ missing"),
    ],
)
def test_damaged_config(pipeline_folder: Path, values: dict, message: str) -> None:
    damage_config(pipeline_folder, **values)
    with pytest.raises(ModelError, match=message):
        load_model(pipeline_folder)


def test_config_that_is_no_json(pipeline_folder: Path) -> None:
    path = pipeline_folder / "unet" / "config.json"
    path.write_text('{"_class_name": ')
    for load in (load_model, load_denoiser_on_meta):
        with pytest.raises(ModelError, match="not valid JSON") as caught:
            load(pipeline_folder)
        assert caught.value.where == str(path)
    path.write_text("[]")
    with pytest.raises(ModelError, match="expected a JSON object, found list"):
        load_model(pipeline_folder)
    path.unlink()
    with pytest.raises(ModelError, match=f"the file does not exist\n  hint: the folder holds {WEIGHTS}"):
        load_model(pipeline_folder)


def test_truncated_weights(pipeline_folder: Path) -> None:
    path = pipeline_folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the weights cannot be read") as caught:
        load_model(pipeline_folder)
    assert caught.value.where == str(path)
    assert caught.value.hint == "download or copy the file again"


def test_missing_weights(pipeline_folder: Path) -> None:
    (pipeline_folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=f"there are no weights in this folder\n  hint: expected {WEIGHTS}"):
        load_model(pipeline_folder)


def test_pipeline_without_a_denoiser(pipeline_folder: Path) -> None:
    index = pipeline_folder / "model_index.json"
    content = json.loads(index.read_text())
    del content["unet"]
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"the pipeline has no denoiser\n  hint: .*found scheduler"):
        load_model(pipeline_folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("builtin:ddpm-cifar10-vehicle", "no builtin model .*\n  hint: did you mean 'ddpm-cifar10-vehicles'"),
        ("builtin:zzz", "no builtin model 'zzz'\n  hint: known: builtin:"),
        ("no/such/folder/here", "no such model\n  hint: expected builtin:NAME"),
        ("config:/no/such.json", "the file does not exist"),
    ],
)
def test_sources_that_do_not_exist(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(source)


def test_file_and_empty_folder(saved: Path, tmp_path: Path) -> None:
    file = saved / "unet" / "config.json"
    with pytest.raises(ModelError, match=f"this is a file\n  hint: give its folder, or config:{file}"):
        load_model(file)
    with pytest.raises(ModelError, match="neither a pipeline nor a denoiser"):
        load_model(tmp_path)
