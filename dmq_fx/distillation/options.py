"""The options of distillation, which are those of the pass `lora_distill`."""

from __future__ import annotations

from dataclasses import dataclass

from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Options of `lora_distill`; what the papers leave open or the releases do by accident is named where it is."""

    iterations: int = option(
        "optimizer steps under the budget `full`; as many whole trajectories as they fill", default=16_000, minimum=1
    )
    batch: int = option("images of a trajectory", default=4, minimum=1, maximum=4096)
    trajectory: str = option(
        "whose predictions the sampler goes on with while learning", default="teacher", choices=("teacher", "student")
    )
    rank: int = option("rank of the weights' updates", default=32, minimum=1, maximum=4096)
    kernel: str = option(
        "update of a convolution: B of 1x1 (EfficientDM), or one for each of the kernel's taps (MPQ-DM)",
        default="pointwise",
        choices=("pointwise", "per_tap"),
    )
    base: str = option(
        "what the update is added to: the weight, or the values of its integers (EfficientDM)",
        default="fp",
        choices=("fp", "int"),
    )
    learning_rate: float = option(
        "of the updates, in mean weight scales of their layer", default=1 / 2500, exclusive_minimum=0.0, maximum=1.0
    )
    scale_aware: bool = option("each layer's own mean scale; false: the mean over all layers", default=True)
    scale_domain: str = option(
        "with equivalent scaling, weight scales are divided by the mean of gamma, as updates are added to the weight "
        "before it; or those of the scaled weight (the release), at which short runs diverge",
        default="unscaled",
        choices=("scaled", "unscaled"),
    )
    scale_offset: float = option("added to mean weight scales; 0.01 in MPQ-DM's release", default=0.0, minimum=0.0)
    learn_weight_scale: bool = option("the scales of the weights are learned as well", default=True)
    weight_scale_learning_rate: float = option(
        "of the scales of weights, and of their zero points", default=1e-6, exclusive_minimum=0.0
    )
    weight_zero_point: str = option(
        "zero points of weights: kept (EfficientDM), or learned through their rounding (MPQ-DM, at a rate that moves "
        "them by less than a hundredth)",
        default="frozen",
        choices=("frozen", "learned"),
    )
    activation_learning_rate: float = option(
        "of scales and zero points of activations", default=5e-4, exclusive_minimum=0.0
    )
    zero_point: str = option(
        "zero points of activations: learned through their rounding; kept; or unrounded while learning, and rounded at "
        "the end (the releases never round)",
        default="ste_round",
        choices=("ste_round", "fixed", "float"),
    )
    slot_moments: str = option(
        "Adam's moments of the ranges of a sampler step: moved at every iteration, or only at those of their own step",
        default="shared",
        choices=("shared", "own"),
    )
    weight_decay: float = option("of the updates, by AdamW", default=0.01, minimum=0.0, maximum=1.0)
    quantizer_weight_decay: float = option("of scales and zero points; 0.01 in the releases", default=0.0, minimum=0.0)
    task_loss: str = option(
        "squared errors of the prediction are summed, or averaged (and the distance over its rows)",
        default="sum",
        choices=("sum", "mean"),
    )
    distance: str = option(
        "distance of the two models' features: of relations between pixels (MPQ-DM), squared, or none",
        default="relation",
        choices=("relation", "l2", "none"),
    )
    feature: str = option(
        "features that are compared: the output of the last block, before the final norm and activation or modulation "
        "(MPQ-DM); or the input of the last layer, which `last_block` is too where no norm is found in the graph",
        default="last_block",
        choices=("last_block", "last_layer"),
    )
    distance_weight: float = option("lambda of the distance", default=100.0, minimum=0.0)
    distance_gradient: bool = option("false: the distance is reported only, as in MPQ-DM's release", default=True)
    window: int = option("sampler steps whose features are averaged", default=2, minimum=1, maximum=1000)
    max_positions: int = option(
        "most pixels that relations are taken between; larger features are average-pooled", default=1024, minimum=4
    )
    gradient_checkpointing: bool = option(
        "for the backward pass only some values are kept, and the others computed again: less memory, more time, the "
        "same gradients",
        default=False,
    )
