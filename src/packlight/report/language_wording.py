"""What the evidence of a language model says, in words and rows, for page and terminal.

Every sentence here is for someone who has never heard of quantization.
"""

from __future__ import annotations

import math

from packlight.measure.language import Divergence
from packlight.measure.language_evidence import LanguageEvidence, Speed
from packlight.report.units import format_bytes, format_number, format_percent
from packlight.report.visible import visible
from packlight.report.wording import (
    Figure,
    compare_amounts,
    count,
    find_factor,
    say_factor,
    tone_of,
)

NO_TEXT = (
    "How far the predictions changed could not be measured. Try the compressed model on your own "
    "text before you rely on it, or run again with --data."
)


def list_language_figures(evidence: LanguageEvidence) -> tuple[Figure, ...]:
    """The rows of the before/after table: size, bits, speed, memory, what became of predictions."""
    size = evidence.size_bytes
    rows = [compare_amounts("Size", size.original, size.compressed)]
    rows.append(Figure("Bits a weight", "", format_number(evidence.bits_per_weight), ""))
    if evidence.removed:
        left = evidence.blocks - len(evidence.removed)
        rows.append(Figure("Blocks", str(evidence.blocks), str(left), ""))
    speed = evidence.speed
    if speed is not None:
        rows += [
            _speed("Writing, tokens a second", speed.generation),
            _speed("Reading, tokens a second", speed.prompt),
        ]
    memory = evidence.peak_memory_bytes
    if memory is not None:
        rows.append(compare_amounts("Peak memory", memory.original, memory.compressed))
    far = evidence.divergence
    if far is None:
        rows.append(Figure("Predictions", "not measured", "not measured", "not known"))
    else:
        rows += _predictions(far, evidence.budget.max_drop)
    return tuple(rows)


def state_language_verdict(evidence: LanguageEvidence) -> str:
    """The verdict in one sentence: how much smaller, how much faster, does it say the same."""
    found = _smaller_and_faster(evidence)
    if evidence.verdict == "not-worth-it":
        lead = f"Keep your original model: the best version found is {found}"
    else:
        lead = f"Your model is {found}"
    far = evidence.divergence
    if far is None:
        return f"{lead}, but how far its predictions changed is not known."
    share = format_percent(far.top_agreement)
    lead += f", and on {count(far.tokens, 'token')} its first choice was the original's {share} "
    lead += "of the time"
    limit = evidence.budget.max_drop
    if limit is None:
        return f"{lead}."
    allowed = format_percent(limit)
    if 1 - far.top_agreement > limit:
        return f"{lead}: more is lost than the {allowed} you allow."
    if 1 - far.top_agreement_interval_95[0] <= limit:
        return f"{lead}: within the loss of {allowed} that you allow, with 95 % certainty."
    return f"{lead}: probably within the loss of {allowed} that you allow, but not proven."


def explain_divergence(far: Divergence) -> str:
    """What the figures mean, and how sure they are."""
    low, high = far.mean_kl_interval_95
    return (
        f"Measured on {count(far.tokens, 'token')} in {count(far.windows, 'window')} of text that "
        "were used for nothing else. KL divergence says how far the probabilities of the next "
        f"token moved: 0 is none, and with 95 % certainty its mean lies between "
        f"{format_number(low)} and {format_number(high)} nats."
    )


def state_language_request(evidence: LanguageEvidence) -> str:
    """What the user asked for, in one sentence."""
    budget = evidence.budget
    said = []
    if evidence.scheme:
        said.append(f"scheme {evidence.scheme}")
    if budget.bits is not None:
        said.append(f"{format_number(budget.bits)} bits a weight")
    if budget.max_size_bytes is not None:
        said.append(f"size at most {format_bytes(budget.max_size_bytes)}")
    if budget.max_drop is not None:
        said.append(f"another first choice at most {format_percent(budget.max_drop)} of the time")
    return f"Asked for: {'; '.join(said) or 'a smaller model'}."


def how_to_run_language(target: str, file: str) -> str:
    """Lines for a shell that run the result; `file` is its name in the output folder."""
    name = visible(file, limit=120)
    if target == "ollama":
        return "ollama create packed -f Modelfile\nollama run packed\n"
    if target == "vllm":
        return "pip install vllm\nvllm serve .  # in the folder of this page\n"
    if target == "onnxruntime":
        return (
            "# pip install onnxruntime-genai; in the folder of this page\n"
            "import onnxruntime_genai as og\n\n"
            'model = og.Model(".")\n'
            "tokenizer, settings = og.Tokenizer(model), og.GeneratorParams(model)\n"
            "settings.set_search_options(max_length=128)\n"
            "generator = og.Generator(model, settings)\n"
            'generator.append_tokens(tokenizer.encode("Once upon a time"))\n'
            "while not generator.is_done():\n"
            "    generator.generate_next_token()\n"
            "print(tokenizer.decode(generator.get_sequence(0)))\n"
        )
    return (
        f"llama-cli -m {name}  # llama.cpp; LM Studio opens the file as it is\n\n"
        "# or in Python: pip install llama-cpp-python\n"
        "from llama_cpp import Llama\n\n"
        f'print(Llama("{name}")("Once upon a time", max_tokens=64)["choices"][0]["text"])\n'
    )


def _smaller_and_faster(evidence: LanguageEvidence) -> str:
    size = find_factor(evidence.size_bytes.original, evidence.size_bytes.compressed)
    smaller = say_factor(size, "smaller", "larger", "of the same size")
    if evidence.speed is None:
        return f"{smaller} (its speed was not measured)"
    speed = speed_factor(evidence.speed.generation)
    faster = say_factor(speed, "faster at writing", "slower at writing", "about as fast as before")
    agree = (size >= 1) == (speed >= 1) or 1.0 in (size, speed)
    return f"{smaller} {'and' if agree else 'but'} {faster}"


def speed_factor(speed: Speed) -> float:
    """How many times faster; 1.0 where the interval does not tell it from 1."""
    low, high = speed.ratio_interval_95
    if low <= 1 <= high or not speed.ratio > 0:
        return 1.0
    return find_factor(speed.ratio, 1.0)


def _speed(name: str, speed: Speed) -> Figure:
    factor = speed_factor(speed)
    change = say_factor(factor, "faster", "slower", "no clear change").replace(" times ", "× ")
    ends = speed.ratio_interval_95
    if factor < 1:  # "slower" is the inverse of the ratio of speeds, so its ends change places
        low, high = ends
        ends = (1 / high if high > 0 else math.inf, 1 / low if low > 0 else math.inf)
    spread = f"{ends[0]:.2f}× to {ends[1]:.2f}×" if all(map(math.isfinite, ends)) else ""
    return Figure(
        name,
        format_number(speed.original),
        format_number(speed.compressed),
        change,
        spread,
        tone_of(factor),
    )


def _predictions(far: Divergence, max_drop: float | None) -> list[Figure]:
    lost = 1 - far.top_agreement
    low, high = far.top_agreement_interval_95
    over = max_drop is not None and lost > max_drop
    kl_low, kl_high = far.mean_kl_interval_95
    ratio_low, ratio_high = far.perplexity_ratio_interval_95
    return [
        Figure(
            "Same first choice",
            "100 %",
            format_percent(far.top_agreement),
            f"{format_percent(lost)} lost" if lost > 0 else "no change",
            f"{format_percent(1 - high)} to {format_percent(1 - low)}",
            "worse" if over else "same",
        ),
        Figure(
            "KL divergence, mean",
            "0",
            format_number(far.mean_kl),
            "",
            _span(kl_low, kl_high),
        ),
        Figure("KL divergence, 99th percentile", "0", format_number(far.p99_kl), ""),
        Figure(
            "Perplexity",
            format_number(far.perplexity_original, digits=4),
            format_number(far.perplexity_compressed, digits=4),
            format_percent(far.perplexity_ratio - 1, signed=True),
            ""
            if not math.isfinite(ratio_high)
            else f"{format_percent(ratio_low - 1, signed=True)} to "
            f"{format_percent(ratio_high - 1, signed=True)}",
            "worse" if ratio_low > 1 else ("better" if ratio_high < 1 else "same"),
        ),
    ]


def _span(low: float, high: float) -> str:
    return f"{format_number(low)} to {format_number(high)}" if math.isfinite(high) else ""
