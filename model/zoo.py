"""Every model that an experiment can use, by its `type` in [model].

To add a model, write a file in model/baselines/ with a config and a class, and add a line to MODELS and to Config.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from model.baselines.afm import AFM, AFMConfig
from model.baselines.afn import AFN, AFNConfig
from model.baselines.aoanet import AOANet, AOANetConfig
from model.baselines.autoint import AutoInt, AutoIntConfig
from model.baselines.dcn import DCN, DCNConfig
from model.baselines.dcnv2 import DCNv2, DCNv2Config
from model.baselines.deepfm import DeepFM, DeepFMConfig
from model.baselines.deepim import DeepIM, DeepIMConfig
from model.baselines.destine import DESTINE, DESTINEConfig
from model.baselines.edcn import EDCN, EDCNConfig
from model.baselines.fibinet import FiBiNET, FiBiNETConfig
from model.baselines.finalmlp import FinalMLP, FinalMLPConfig
from model.baselines.fm import FM, FMConfig
from model.baselines.interhat import InterHAt, InterHAtConfig
from model.baselines.ipnn import IPNN, IPNNConfig
from model.baselines.lr import LR, LRConfig
from model.baselines.masknet import MaskNet, MaskNetConfig
from model.baselines.widedeep import WideDeep, WideDeepConfig
from model.baselines.xdeepfm import XDeepFM, XDeepFMConfig
from model.layers import Fields
from model.stec.stec import STEC, STECConfig

Config = (
    STECConfig
    | LRConfig
    | FMConfig
    | IPNNConfig
    | WideDeepConfig
    | DCNConfig
    | DeepFMConfig
    | XDeepFMConfig
    | FiBiNETConfig
    | AFNConfig
    | DeepIMConfig
    | AOANetConfig
    | DCNv2Config
    | EDCNConfig
    | MaskNetConfig
    | FinalMLPConfig
    | AFMConfig
    | InterHAtConfig
    | AutoIntConfig
    | DESTINEConfig
)

MODELS: Mapping[str, tuple[type[Config], Callable[[Fields, Any], nn.Module]]] = {
    "stec": (STECConfig, STEC),
    "lr": (LRConfig, LR),
    "fm": (FMConfig, FM),
    "ipnn": (IPNNConfig, IPNN),
    "widedeep": (WideDeepConfig, WideDeep),
    "dcn": (DCNConfig, DCN),
    "deepfm": (DeepFMConfig, DeepFM),
    "xdeepfm": (XDeepFMConfig, XDeepFM),
    "fibinet": (FiBiNETConfig, FiBiNET),
    "afn": (AFNConfig, AFN),
    "deepim": (DeepIMConfig, DeepIM),
    "aoanet": (AOANetConfig, AOANet),
    "dcnv2": (DCNv2Config, DCNv2),
    "edcn": (EDCNConfig, EDCN),
    "masknet": (MaskNetConfig, MaskNet),
    "finalmlp": (FinalMLPConfig, FinalMLP),
    "afm": (AFMConfig, AFM),
    "interhat": (InterHAtConfig, InterHAt),
    "autoint": (AutoIntConfig, AutoInt),
    "destine": (DESTINEConfig, DESTINE),
}


def build(fields: Fields, config: Config) -> nn.Module:
    """Return a new model: ids int64 (B, C), values (B, M) -> logits (B).

    Raises:
        ValueError: If the config refers to a field that does not exist.
    """
    _, model = MODELS[name_of(config)]
    return model(fields, config)


def name_of(config: Config) -> str:
    """Return the model `type` of a config."""
    name: str = config.__struct_config__.tag  # type: ignore[assignment]
    return name
