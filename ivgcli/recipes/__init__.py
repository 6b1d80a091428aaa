"""Recipes: what a run is, as validated, frozen values that read from YAML and write back to it.

`load` resolves a recipe file, `--set` overrides, flags and guides into one recipe; `to_yaml` writes
it down in full, and `run_id` names it. Nothing here touches a model or the network.
"""

from ivgcli.recipes.base import BaseSpec, ServerSpec
from ivgcli.recipes.guide import ExplicitSpec, Guide, ImplicitSpec, ModelSpec, is_callable
from ivgcli.recipes.judging import (
    AlpacaEvalSpec,
    JudgeRecipe,
    JudgeSpec,
    PairwiseSpec,
    SafetySpec,
    with_templates,
)
from ivgcli.recipes.references import shipped_dir, shipped_guides
from ivgcli.recipes.reporting import ReportRecipe
from ivgcli.recipes.resolve import load, run_id, to_guide, to_yaml
from ivgcli.recipes.schema import (
    MODES,
    BonRecipe,
    ChunkSpec,
    EngineSpec,
    GenerateRecipe,
    SamplingSpec,
    TokenSpec,
)
from ivgcli.recipes.synthesis import RewardSpec, SynthesizeRecipe
from ivgcli.recipes.training import (
    InitSpec,
    LoraSpec,
    OptimiserSpec,
    PreferenceSpec,
    RewardModelSpec,
    RolloutSpec,
    SftSpec,
    TrainExplicitRecipe,
    TrainImplicitRecipe,
    Training,
    ValueSpec,
)

__all__ = [
    "MODES",
    "AlpacaEvalSpec",
    "BaseSpec",
    "BonRecipe",
    "ChunkSpec",
    "EngineSpec",
    "ExplicitSpec",
    "GenerateRecipe",
    "Guide",
    "ImplicitSpec",
    "InitSpec",
    "JudgeRecipe",
    "JudgeSpec",
    "LoraSpec",
    "ModelSpec",
    "OptimiserSpec",
    "PairwiseSpec",
    "PreferenceSpec",
    "ReportRecipe",
    "RewardModelSpec",
    "RewardSpec",
    "RolloutSpec",
    "SafetySpec",
    "SamplingSpec",
    "ServerSpec",
    "SftSpec",
    "SynthesizeRecipe",
    "TokenSpec",
    "TrainExplicitRecipe",
    "TrainImplicitRecipe",
    "Training",
    "ValueSpec",
    "is_callable",
    "load",
    "run_id",
    "shipped_dir",
    "shipped_guides",
    "to_guide",
    "to_yaml",
    "with_templates",
]
