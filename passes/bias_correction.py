"""Bias correction: take the mean error that rounding adds to every output channel off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), section
4.2, in its empirical form: E[y - Q(y)] over the calibration inputs, per output channel, added to the bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dmq_fx.calibration.lockstep import Lockstep, SiteCall
from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.errors import CalibrationError
from dmq_fx.pass_api import PASSES, Order, PassResult
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.split import HALVES
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class BiasCorrectionOptions:
    """Options of `bias_correction`."""

    batches: int = option("minibatches that the mean is taken over", default=16, minimum=1)
    batch: int = option("samples of a minibatch", default=32, minimum=1, maximum=4096)
    full_precision_sites: bool = option(
        "also the biases of sites that stay in full precision and read what quantized ones give", default=False
    )


BEFORE = frozenset({"output_corrected", "distilled"})


@PASSES.register("bias_correction")
class BiasCorrection:
    """Takes the mean error of every output channel off the biases, site after site in the order they are executed.

    Every site reads what the quantized sites before it give, already corrected. The k-th minibatch moves a bias by 1/k
    of its mean error, which makes the biases averages over the minibatches in constant memory. Not for weights that
    were learned block by block: a layer inside has errors there that those behind it were learned to undo. After
    `lora_distill`, where that is so of all layers and the prediction is what was learned, it is an error.
    """

    Options = BiasCorrectionOptions
    requires = frozenset({"calibrated", "rounded"})
    ensures = frozenset({"bias_corrected"})
    before = BEFORE

    @staticmethod
    def order(options: BiasCorrectionOptions) -> Order:
        """Weights that were distilled are learned with the biases that they have."""
        advice = "leave bias_correction out; output_correction takes the mean error off the prediction, step by step"
        return Order(BiasCorrection.requires, BiasCorrection.ensures, BEFORE, advice)

    @staticmethod
    def run(program: Program, options: BiasCorrectionOptions, context: PassContext) -> PassResult:
        if context.calibration is None:
            raise CalibrationError("bias_correction needs calibration inputs")
        owners = _owners(program, options)
        minibatches = Minibatches(
            program.traced, context.calibration, batch=options.batch, seed=context.seed, device=context.device
        )
        biases: dict[str, Tensor] = {}  # in float64: a bfloat16 sum would stop growing
        begin: dict[str, Tensor] = {}
        share = 1.0

        def correct(call: SiteCall) -> Tensor | None:
            name = owners.get(call.planned.name)
            if name is None or call.exact is call.quantized:
                return None
            axis = call.exact.dim() - 1 if call.planned.site.op == "linear" else 1
            error = (call.exact - call.quantized).double().movedim(axis, 0).flatten(1).mean(1)
            original = get_tensor(program.traced.graph_module, name).detach()
            bias = begin.setdefault(name, program.biases.get(name, original).double())
            shift = error * share
            biases[name] = biases.get(name, bias) + shift
            program.biases[name] = biases[name].to(original.dtype)
            shape = [-1 if dim == axis else 1 for dim in range(call.exact.dim())]
            return call.quantized + shift.to(call.quantized).reshape(shape)

        run = Lockstep(program, correct)
        for done in range(options.batches):
            share = 1.0 / (done + 1)
            run.forward(minibatches.draw(done))
            context.progress("bias correction", done + 1, options.batches)
        largest = max((float((bias - begin[name]).abs().max()) for name, bias in biases.items()), default=0.0)
        return PassResult(tuple(sorted(owners)), {"largest_shift": round(largest, 6)})


def _owners(program: Program, options: BiasCorrectionOptions) -> dict[str, str]:
    """The bias that takes a site's error, by the site's name; both halves of a split site have the one bias."""
    biases = {planned.name: planned.site.bias for planned in program.plan.sites if planned.site.bias}
    for split in program.splits:
        kept = next((biases[f"{split}.{half}"] for half in HALVES if f"{split}.{half}" in biases), None)
        if kept is not None:
            biases |= {f"{split}.{half}": kept for half in HALVES}
    return {
        planned.name: biases[planned.name]
        for planned in program.plan.sites
        if planned.name in biases
        and ("bias_correction" in planned.passes if planned.quantized else options.full_precision_sites)
    }
