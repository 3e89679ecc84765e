"""Hugging Face cache with a stand-in for EAT's backbone, so that avex's real loading path runs without the hub.

The real backbone is code and weights on the hub, loaded through ``AutoModel.from_pretrained``. The stand-in has only
its interface: ``extract_features`` takes spectra ``[batch, 1, frames, mels]`` and returns tokens
``[batch, 1 + patches, 768]``, the CLS token first.
"""

import json
from pathlib import Path

REPOSITORY = "models--worstchan--EAT-base_epoch30_pretrain"
REVISION = "0" * 40

MODELING = """
import torch
from transformers import PreTrainedModel
from .configuration_eat import EATConfig


class EATModel(PreTrainedModel):
    config_class = EATConfig

    def __init__(self, config):
        super().__init__(config)
        self.cls_token = torch.nn.Parameter(torch.full((1, 1, 768), 7.0))
        self.patches = torch.nn.Conv2d(1, 768, 16, 16)

    def _init_weights(self, module):
        pass

    def extract_features(self, spectra):
        tokens = self.patches(spectra).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
"""

CONFIGURATION = """
from transformers import PretrainedConfig


class EATConfig(PretrainedConfig):
    model_type = "eat"
"""


def write_cache(hf_home: Path) -> None:
    """Write the stand-in to ``hf_home`` with the layout of huggingface_hub after a download."""
    import torch
    from safetensors.torch import save_file

    snapshot = hf_home / "hub" / REPOSITORY / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (hf_home / "hub" / REPOSITORY / "refs").mkdir()
    (hf_home / "hub" / REPOSITORY / "refs" / "main").write_text(REVISION)
    (snapshot / "modeling_eat.py").write_text(MODELING)
    (snapshot / "configuration_eat.py").write_text(CONFIGURATION)
    auto_map = {"AutoConfig": "configuration_eat.EATConfig", "AutoModel": "modeling_eat.EATModel"}
    (snapshot / "config.json").write_text(
        json.dumps({"model_type": "eat", "architectures": ["EATModel"], "auto_map": auto_map})
    )
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "cls_token": torch.full((1, 1, 768), 7.0),
        "patches.weight": torch.randn(768, 1, 16, 16, generator=generator),
        "patches.bias": torch.randn(768, generator=generator),
    }
    save_file(tensors, snapshot / "model.safetensors", metadata={"format": "pt"})
