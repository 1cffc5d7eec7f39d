"""Networks are counted without their storage, and as the table of presets has them."""

from medley.models.count import count_parameters
from medley.models.presets import parameters, preset
from medley.protocol.spec import Lora, Model


def test_presets_are_as_large_as_their_formula_says() -> None:
    for base in ("llama-tiny", "opt-tiny", "tinyllama-1.1b"):
        assert count_parameters(Model(base=base)) == (parameters(preset(base), 4096), 0)


def test_adapters_freeze_the_rest() -> None:
    assert count_parameters(Model(lora=Lora(rank=8))) == (116_736, 5_113_728)
