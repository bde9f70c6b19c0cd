"""Writes a tokenizer.json that gives exactly the ids of a sentencepiece BPE model.

Left with tokenizer.model alone, transformers builds a tokenizer of its own whose ids differ. The rules followed here
are sentencepiece's own (Kudo and Richardson, "SentencePiece", EMNLP 2018, and its BPE encoder): a blank is put in
front, blanks become "▁", the text falls into characters, and the adjacent pair whose joined piece has the best score
is merged until none is left; what is not in the vocabulary becomes its UTF-8 bytes.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from sqlora.errors import SqloraError

BLANK = "▁"
ODD_STRINGS = (
    "",
    " ",
    "   ",
    "a",
    " a",
    "a ",
    "  two  blanks  ",
    "\t",
    "\ttab\tand\n\nnewlines\r\n",
    "\n",
    "table: 1-1000181-1\ncolumns: State/territory, No. (#), Opponent#\nQ: What's 1,234.50% of “x”? \nA: ",
    "SELECT COUNT Player FROM 2-10812403-4 WHERE Pick # = 'O''Brien' AND Año > 1999</s>",
    "<s>",
    "</s>",
    "<unk>",
    "<s> text </s><s>",
    "<0x0A> <0x",
    "▁",
    "▁▁a ▁",
    "😀 👩‍👩‍👧 🇫🇷",
    "漢字とかな 한국어 中文，测试",
    "e\u0301 n\u0303 \u0301",
    "ﬁ ½ ² Ⅷ Å ｆｕｌｌ　ｗｉｄｔｈ",
    "العربية עברית ไทย हिन्दी",
    "\x00 \x01\x07\x1b\x7f\x85\xa0\u200b\u2028\ufeff\ufffd",
    "𝕬𝖇𝖈 𐍈 \U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaa --------------- ============ ........ 0000000000 ''''''",
    " " * 33 + "x" + " " * 7 + "\n" * 9,
)


def convert_tokenizer(source: Path, folder: Path, *, vocab_size: int, padded: bool = False) -> SentencePieceProcessor:
    """Put tokenizer.model, tokenizer.json and tokenizer_config.json into `folder`; returns the loaded source.

    Args:
        source: a sentencepiece model: BPE with byte fallback, a dummy prefix and no normalisation, as Mistral's.
        folder: exists.
        vocab_size: rows of the model's embedding, which the vocabulary must have too.
        padded: whether the embedding may have more rows, which no text uses.

    Raises:
        SqloraError: for another kind of model or size, or if the written tokenizer gives one different id.
    """
    sentencepiece = load_sentencepiece(source)
    pieces = sentencepiece.vocab_size()
    if pieces > vocab_size or (pieces < vocab_size and not padded):
        raise SqloraError(
            source,
            found=f"a vocabulary of {pieces} pieces",
            expected=f"{vocab_size}, the vocab_size in {'config' if padded else 'params'}.json and the rows of the "
            "embedding",
            next_step="Use the tokenizer.model that belongs to these weights.",
        )
    tokenizer = build_tokenizer(sentencepiece, source)
    shutil.copyfile(source, folder / "tokenizer.model")
    tokenizer.save(str(folder / "tokenizer.json"))
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    check_tokenizer(written, sentencepiece, source)
    config = {
        # The class that takes tokenizer.json as it is; others rebuild parts of it by rules of their own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": sentencepiece.id_to_piece(sentencepiece.bos_id()),
        "eos_token": sentencepiece.id_to_piece(sentencepiece.eos_id()),
        "unk_token": sentencepiece.id_to_piece(sentencepiece.unk_id()),
        # "<s>" in a question is text, for sentencepiece as for us; only the template adds the token.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,  # transformers' way to say: no limit known to the tokenizer
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return sentencepiece


def load_sentencepiece(source: Path) -> SentencePieceProcessor:
    """Read a sentencepiece model that has the special tokens a language model needs."""
    try:
        sentencepiece = SentencePieceProcessor(model_proto=source.read_bytes())
    except (RuntimeError, OSError) as error:
        raise SqloraError(
            source,
            found="no such file" if isinstance(error, FileNotFoundError) else "no readable sentencepiece model",
            expected="a sentencepiece model",
            next_step="Fetch the model again, or use the tokenizer.model that belongs to these weights.",
        ) from None
    if min(sentencepiece.bos_id(), sentencepiece.eos_id(), sentencepiece.unk_id()) < 0:
        raise _unfit(source, "no beginning, end or unknown token")
    return sentencepiece


def build_tokenizer(sentencepiece: SentencePieceProcessor, source: Path) -> Tokenizer:
    """The same tokenizer for the `tokenizers` library; `encode(..., add_special_tokens=True)` puts BOS in front.

    Special tokens are deliberately not registered as "added tokens": those would be found in plain text.
    """
    size = sentencepiece.vocab_size()
    pieces = [sentencepiece.id_to_piece(index) for index in range(size)]
    special = {sentencepiece.bos_id(), sentencepiece.eos_id(), sentencepiece.unk_id()}
    merging = {
        piece: index
        for index, piece in enumerate(pieces)
        if not (
            index in special
            or sentencepiece.is_byte(index)
            or sentencepiece.is_control(index)
            or sentencepiece.is_unused(index)
        )
    }
    if sum(sentencepiece.is_byte(index) for index in range(size)) != 256:
        raise _unfit(source, "no byte fallback")

    ranked: list[tuple[float, int, str, str]] = []
    for piece, index in merging.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in merging and right in merging:
                ranked.append((-sentencepiece.get_score(index), -cut, left, right))
    ranked.sort()
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[(left, right) for *_, left, right in ranked],
            unk_token=pieces[sentencepiece.unk_id()],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bos = pieces[sentencepiece.bos_id()]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, sentencepiece.bos_id())]
    )
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, sentencepiece: SentencePieceProcessor, source: Path) -> None:
    """Raise SqloraError unless both give the same ids on odd strings, on every piece and on random joins of pieces."""
    texts = [*ODD_STRINGS, *_texts_of_pieces(sentencepiece)]
    expected = sentencepiece.encode(texts)
    for text, ids, encoding in zip(texts, expected, tokenizer.encode_batch(texts), strict=True):
        if encoding.ids != [sentencepiece.bos_id(), *ids]:
            raise _unfit(
                source,
                f"a tokenizer whose ids for {text[:60]!r} are {ids[:8]} where the same rules give {encoding.ids[1:9]}",
            )


def _texts_of_pieces(sentencepiece: SentencePieceProcessor) -> Sequence[str]:
    pieces = [sentencepiece.id_to_piece(index).replace(BLANK, " ") for index in range(sentencepiece.vocab_size())]
    generator = random.Random(0)
    joined = ["".join(generator.choices(pieces, k=12)) for _ in range(2000)]
    return [*pieces, *joined]


def _unfit(source: Path, found: str) -> SqloraError:
    return SqloraError(
        source,
        found=found,
        expected="a sentencepiece BPE model with byte fallback, a dummy prefix and no normalisation, as Mistral's",
        next_step="Use a model of that kind; others would be tokenized differently by each tool that loads the result.",
    )
