"""The models of the tests, and a checkpoint of each."""

from pathlib import Path

from weights import set_batch_norm_statistics

BEATS = "esp_aves2_sl_beats_all"
EFFICIENTNET = "esp_aves2_effnetb0_all"


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write a checkpoint that avex makes from seeded weights, which differ from those of ``random``."""
    import avex
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1234)
    spec = avex.get_model_spec(name)
    assert spec is not None
    module = avex.build_model_from_spec(spec, "cpu", return_features_only=True, pretrained=False)
    if name == EFFICIENTNET:
        set_batch_norm_statistics(module)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.clone().contiguous() for key, tensor in module.state_dict().items()}, path)
    return path
