"""Configuration of the tri-matrix adapter, with the checks of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from peft import LoraConfig

from trifed.common.errors import AdapterError

PEFT_TYPE: Final = "TRILORA"
"""The `peft_type` in `adapter_config.json`; plain PEFT rejects a folder that has it."""

MIXTURE_TYPE: Final = "LORAMIXTURE"
"""The `peft_type` of two LoRAs with a mixer, which plain PEFT rejects too."""

DUAL_TYPE: Final = "LORADUAL"
"""The `peft_type` of two LoRAs that are weighed for each example, which plain PEFT rejects too."""

# Each of these changes what B·C·A means or adds tensors beside A, B and C. Cores of clients that differ
# in them could not be compared or averaged, and the export to plain LoRA would no longer be exact.
_UNSUPPORTED: Final = (
    "use_rslora",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "target_parameters",
    "layer_replication",
    "ensure_weight_tying",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "loftq_config",
    "megatron_config",
    "alora_invocation_tokens",
)


@dataclass
class TriLoraConfig(LoraConfig):  # type: ignore[misc]
    r"""A LoRA with a core between its two factors: $y = W_0 x + s\,B C A x$.

    Sources: CE-LoRA, arXiv 2503.23869 (`train="all"`); LoRA-XS, arXiv 2405.17604 (`train="core"`).

    The fields are those of `peft.LoraConfig` and `train`. In both modes the adapted model equals the base
    model before the first step.

    Attributes:
        train: `"all"` trains A, C and B, initialised as A Kaiming-uniform (as in PEFT), C = I and B = 0, with
            $s = \alpha/r$. `"core"` trains C alone, initialised as 0, between shared projections from the SVD
            of the frozen weight, $A = V_r^\top$ and $B = U_r \Sigma_r$, with $s = 1$ for every `lora_alpha`
            and `alpha_pattern`.

    Raises:
        AdapterError: At construction, with all reasons in one message: an unknown `train`, a rank below 1, a
            scale that is not positive, an `init_lora_weights` other than True, a trained bias, or a LoRA
            variant.
    """

    train: Literal["all", "core"] = field(
        default="all",
        metadata={
            "help": "'all' trains A, C and B; 'core' trains C between frozen projections from the SVD of W0"
        },
    )

    def __post_init__(self) -> None:
        # First, because PEFT asks for optional packages or warns about some of the settings refused here.
        self.check()
        super().__post_init__()
        self.peft_type = PEFT_TYPE

    def check(self) -> None:
        """Raise `AdapterError` if any setting has no meaning in this form."""
        checks = [
            (self.train not in ("all", "core"), f"train is {self.train!r}: expected 'all' or 'core'"),
            (
                self.init_lora_weights is not True,
                f"init_lora_weights is {self.init_lora_weights!r}: only True is supported. train='all' then "
                "starts from A Kaiming-uniform, C = I, B = 0; train='core' from SVD projections and C = 0. With "
                "other values B = 0 (a core that trains alone would never move) or step 0 changes",
            ),
            *(
                (
                    not isinstance(rank, int) or isinstance(rank, bool) or rank < 1,
                    f"{name} is {rank!r}: expected a whole number of at least 1",
                )
                for name, rank in _with_pattern("r", self.r, "rank_pattern", self.rank_pattern)
            ),
            *(
                (not alpha > 0, f"{name} is {alpha!r}: expected a positive number, otherwise nothing can learn")
                for name, alpha in _with_pattern(
                    "lora_alpha", self.lora_alpha, "alpha_pattern", self.alpha_pattern
                )
            ),
            *((getattr(self, name), f"{name} is not supported: leave it unset") for name in _UNSUPPORTED),
            (
                self.bias != "none",
                f"bias is {self.bias!r}: only 'none' is supported, the frozen weights stay frozen",
            ),
        ]
        problems = [problem for wrong, problem in checks if wrong]
        if problems:
            raise AdapterError("TriLoraConfig: " + "; ".join(problems))


def _with_pattern(
    name: str, value: Any, pattern_name: str, pattern: Mapping[str, Any] | None
) -> list[tuple[str, Any]]:
    return [(name, value), *((f"{pattern_name}[{key!r}]", v) for key, v in (pattern or {}).items())]
