"""Tokenizer classes of transformers that bring special tokens which no file need name.

As of transformers 4.57. A class that is not here, PreTrainedTokenizerFast among them, brings none:
what tokenizer.json and tokenizer_config.json say is all there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TokenizerClass:
    """What a class brings.

    Attributes:
        tokens: texts of special tokens by name, where the files name no others.
        ends: (add_bos_token, add_eos_token) where the files say neither, of a class that puts BOS
            and EOS itself, whatever the post-processor of tokenizer.json does; None for others.
        prefix_space: whether it sets add_prefix_space of the pre-tokenizer.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    ends: tuple[bool, bool] | None = None
    prefix_space: bool = True


GENERIC = TokenizerClass()


def _tokens(**texts: str) -> dict[str, str]:
    return {f"{name}_token": text for name, text in texts.items()}


_SENTENCEPIECE = _tokens(bos="<s>", eos="</s>", unk="<unk>")
_GPT2 = _tokens(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>")
_BERT = TokenizerClass(
    _tokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]"),
)
_ROBERTA = TokenizerClass(
    {**_SENTENCEPIECE, **_tokens(sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")}
)
_T5 = TokenizerClass(_tokens(eos="</s>", unk="<unk>", pad="<pad>"))

_CLASSES = {
    "Llama": TokenizerClass(_SENTENCEPIECE, (True, False), prefix_space=False),
    "CodeLlama": TokenizerClass(_SENTENCEPIECE, (True, False)),
    "Gemma": TokenizerClass(
        _tokens(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>"), (True, False)
    ),
    "Cohere": TokenizerClass(
        _tokens(bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", unk="<UNK>"), (True, False)
    ),
    "GPTNeoX": TokenizerClass(_GPT2, (False, False)),
    "GPT2": TokenizerClass(_GPT2),
    "CodeGen": TokenizerClass(_GPT2),
    "Whisper": TokenizerClass(_GPT2),
    "Qwen2": TokenizerClass(
        _tokens(eos="<|endoftext|>", unk="<|endoftext|>", pad="<|endoftext|>"),
    ),
    "Bloom": TokenizerClass({**_SENTENCEPIECE, **_tokens(pad="<pad>")}),
    "T5": _T5,
    "MT5": _T5,
    "Bert": _BERT,
    "ConvBert": _BERT,
    "DistilBert": _BERT,
    "Electra": _BERT,
    "MobileBert": _BERT,
    "RoFormer": _BERT,
    "SqueezeBert": _BERT,
    "Deberta": TokenizerClass({**_BERT.tokens, **_tokens(bos="[CLS]", eos="[SEP]")}),
    "DebertaV2": TokenizerClass({**_BERT.tokens, **_tokens(bos="[CLS]", eos="[SEP]")}),
    "Albert": TokenizerClass(
        {**_BERT.tokens, **_tokens(bos="[CLS]", eos="[SEP]", unk="<unk>", pad="<pad>")}
    ),
    "Bart": _ROBERTA,
    "Camembert": _ROBERTA,
    "Longformer": _ROBERTA,
    "Roberta": _ROBERTA,
    "XLMRoberta": _ROBERTA,
    "MPNet": TokenizerClass({**_ROBERTA.tokens, **_tokens(unk="[UNK]")}),
}

# model_type of config.json, for folders that name no class.
_OF_MODELS = {
    "Llama": "arcee deepseek_v2 deepseek_v3 diffllama ernie4_5 ernie4_5_moe idefics idefics2 "
    "idefics3 jamba jetmoe llama llama4 llama4_text llava llava_next llava_onevision ministral "
    "mistral mistral3 mixtral mllama paligemma persimmon phi3 phimoe zamba zamba2",
    "CodeLlama": "code_llama",
    "Gemma": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma t5gemma",
    "Cohere": "aya_vision cohere cohere2",
    "GPTNeoX": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmo2 olmoe rwkv stablelm xlstm",
    "GPT2": "dbrx exaone4 flex_olmo gpt2 gpt_bigcode gpt_neo gptj minimax olmo3 opt starcoder2",
    "CodeGen": "codegen phi",
    "Whisper": "whisper",
    "Qwen2": "internvl qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 "
    "qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe",
    "Bloom": "bloom",
    "T5": "longt5 t5 umt5",
    "MT5": "mt5",
    "Bert": "bert megatron-bert",
    "ConvBert": "convbert",
    "DistilBert": "distilbert",
    "Electra": "electra",
    "MobileBert": "mobilebert",
    "RoFormer": "roformer",
    "SqueezeBert": "squeezebert",
    "Deberta": "deberta",
    "DebertaV2": "deberta-v2",
    "Albert": "albert nystromformer yoso",
    "Bart": "bart",
    "Camembert": "camembert",
    "Longformer": "longformer",
    "Roberta": "data2vec-text ibert roberta roberta-prelayernorm",
    "XLMRoberta": "xlm-roberta xlm-roberta-xl xmod",
    "MPNet": "mpnet",
}
_BY_MODEL = {model: name for name, models in _OF_MODELS.items() for model in models.split()}


def tokenizer_class(named: object, model_type: object) -> TokenizerClass:
    """What the class of a tokenizer brings.

    Args:
        named: tokenizer_class of tokenizer_config.json or config.json, None where neither has one.
        model_type: of config.json, which decides where no class is named; None for none.
    """
    if isinstance(named, str) and named:
        return _CLASSES.get(named.removesuffix("Fast").removesuffix("Tokenizer"), GENERIC)
    name = _BY_MODEL.get(model_type) if isinstance(model_type, str) else None
    return _CLASSES[name] if name is not None else GENERIC
