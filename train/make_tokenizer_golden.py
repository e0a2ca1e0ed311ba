"""Makes tests/golden/tokenizer/: small tokenizers and the ids that independent code gives.

Needs the PyPI packages `tokenizers` (0.23.3), `sentencepiece` (0.2.3) and `rwkv` (0.8.32, without
its dependencies: pip install --no-deps rwkv==0.8.32):

    python3 train/make_tokenizer_golden.py tests/golden/tokenizer

Per pre-tokenizer family (gpt2, neox, smollm, llama3, qwen2): NAME.json is a tokenizer.json trained on the
text below, NAME.cases.json its ids by Hugging Face's `tokenizers`. spm.model is a SentencePiece BPE
model with byte fallback as Llama 2's, spm.cases.json its ids by the sentencepiece package, and
spm.pieces.json its pieces as a GGUF file would carry them. world.cases.json has the ids of the `rwkv`
package with its whole World vocabulary (id 0 excepted: it has no text), and world.vocab.txt those
lines of that vocabulary that the texts need, some that they do not, and every single byte.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = """The river rises in the hills and runs for a hundred miles before it meets the sea.
In 1847 the first bridge was built; by 1902 there were 17 of them, and 2,300 boats a day.
They'd said it couldn't be done. "We'll see," she answered, "what's left when you're gone."
    if (x == 0) {
        return y + 12345;   // twelve thousand
    }
Der Fluß fließt über die Brücke; l'été, la rivière est à sec. Привет, мир! 世界 こんにちは 안녕
the the the of of and and to to a a in in is is it it that that was was for for on on are are
""" * 4

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool>", "<tool_call>"]

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\n \n", "a", " a", "  a", "a ", "a  ", "a  b",
    "Hello world", " Hello  world ", "The river rises in the hills.", "hello\nworld", "hello \n world",
    "hello\r\nworld\r\n", "hello\r\n\r\n  world", "tab\tand\t\ttabs \t mixed", "x\n\n\n  y\n \n z",
    "a  1", "a 1", "a1b22c333d4444", "1234567890", "1 2  3   4", "3.14159, 2,300 and -17%", "٣٤٥ ５６ Ⅷ ½ ²",
    "it's I'm you're we'll they've he'd can't", "IT'S I'M YOU'RE WE'LL THEY'VE HE'D CAN'T", "'s't're 's 't",
    "don''t 'quoted' ''", "!!! ??? ... -- ==> [[x]]", "!!!\n\n???\n x", "foo.\nbar,\r\n baz;\n\n\n", ".\n", " .\n\n a",
    "naïve café", "cafe\u0301 nai\u0308ve", "e\u0301\u0323 x\u0301", "ﬁ ﬂ Å Å Ω", "Straße ẞ ſ 'ſ",
    "Привет, мир!", "世界，你好。", "こんにちは世界", "안녕하세요", "مرحبا بالعالم", "हिन्दी में", "ไทย",
    "😀", "👩‍👩‍👧‍👦 family 🏳️‍🌈", "a😀b 🇩🇪", "\u00a0nbsp\u00a0\u00a0x", "a\u2003b\u2009c\u3000d\u202fe\u205f", "a\u0085b\u2028c\u2029d",
    "a\u180eb\u200bc\u200dd\ufeffe", "\u001c\u001d\u001e\u001f", "\u0000\u0001\u007f", "a\u000bb\u000cc",
    "<|im_start|>user\nhi<|im_end|>", "<|im_start|><|im_end|>", "x<|endoftext|>y", "<|im_start", "|im_start|>",
    " <|im_start|> ", "<<|im_start|>>", "<tool>x<tool_call>y<tool", "<tool_<tool>", "<s>", "</s>", "<0x0A>", "<unk>",
    "▁", "a▁b ▁ c", "Ġ", "ĠĠ Ċ", "\U00010000\U0010ffff", "\ue000\ufdd0", "x" * 100, "ab" * 60 + " " + " " * 70 + "c",
    "    if (x == 0) {\n        return y + 12345;   // twelve thousand\n    }\n", "\"We'll see,\" she answered",
    "a/b\\c|d~e`f@g#h$i%j^k&l*m(n)o_p", "line one\n\nline two\n\n\n\nline three   \n   ", "\t\tx\n\t\ty", "9" * 50,
    "mixed 世界123abc '456'll", "\u0301", " \u0301", "a \u0301b", "1\u0301 2", "\n\u0301", "'\n's", "x'S",
]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split_on(pattern):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level(False)])


FAMILIES = {
    "gpt2": byte_level(True),
    "neox": byte_level(True),  # with what GPT-NeoX-20B adds: NFC, and runs of spaces as tokens
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
    "llama3": split_on(LLAMA3),
    "qwen2": split_on(QWEN2),
}


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, indent=0) + "\n")


def make_bpe(name, pre, out):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    tokenizer.pre_tokenizer = pre
    if name in ("qwen2", "neox"):
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=CONTROLS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in USER_DEFINED])
    if name == "neox":
        tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    root = json.loads(tokenizer.to_str())
    if name in ("gpt2", "neox", "smollm"):  # the older form of merges
        root["model"]["merges"] = [" ".join(pair) for pair in root["model"]["merges"]]
    write(out / f"{name}.json", root)
    cases = []
    for text in TEXTS:
        tokenizer.encode_special_tokens = True  # as ordinary text
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        special = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": plain, "special": special})
    write(out / f"{name}.cases.json", cases)


def make_spm(out):
    with tempfile.TemporaryDirectory() as folder:
        corpus = pathlib.Path(folder) / "corpus.txt"
        corpus.write_text(CORPUS)
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=f"{folder}/spm", model_type="bpe", vocab_size=600,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, split_digits=True, character_coverage=0.98,
            hard_vocab_limit=False, minloglevel=2)
        model = pathlib.Path(f"{folder}/spm.model").read_bytes()
    (out / "spm.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = []
    for i in range(processor.get_piece_size()):
        kind = (2 if processor.is_unknown(i) else 3 if processor.is_control(i) else
                6 if processor.is_byte(i) else 5 if processor.is_unused(i) else 1)
        pieces.append({"piece": processor.id_to_piece(i), "score": processor.get_score(i), "type": kind})
    write(out / "spm.pieces.json", pieces)
    write(out / "spm.cases.json",
          [{"text": t, "ids": processor.encode(t), "decoded": processor.decode(processor.encode(t))}
           for t in TEXTS if "\0" not in t])


def make_world(out):
    # By path: the folder train/rwkv has the same name.
    package = pathlib.Path(importlib.metadata.distribution("rwkv").locate_file("rwkv"))
    spec = importlib.util.spec_from_file_location("rwkv_tokenizer", package / "rwkv_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = package / "rwkv_vocab_v20230424.txt"
    tokenizer = module.TRIE_TOKENIZER(str(path))
    cases, used = [], set(range(1, 257))
    for text in TEXTS + [CORPUS[: len(CORPUS) // 4]]:
        ids = tokenizer.encode(text)
        assert tokenizer.decodeBytes(ids) == text.encode()
        cases.append({"text": text, "ids": ids})
        used.update(ids)
    # Longer entries that begin as the texts do must lose, where the text goes on otherwise.
    heads = {tokenizer.idx2token[i][:3] for i in used if i > 256}
    longer = [i for i, piece in sorted(tokenizer.idx2token.items()) if i not in used and piece[:3] in heads]
    used.update(random.Random(20240607).sample(longer, 150))
    # In the file's order. A piece that is not used cannot change what is longest: ids stay as they are.
    lines = [line for line in path.read_text(encoding="utf-8").split("\n")
             if line and int(line.split(" ")[0]) in used]
    (out / "world.vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write(out / "world.cases.json", cases)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, pre in FAMILIES.items():
        make_bpe(name, pre, out)
    make_spm(out)
    make_world(out)


if __name__ == "__main__":
    main()
