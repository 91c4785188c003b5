"""Small published files, written by hand in the layout in which each data set was published, and what is mined of them.

A case is (source, {file name: content}, flags, {output: its training lines}, {rule: how many records it left out}).
"""

import bz2
import contextlib
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from data.formats import BadLine
from data.mine.mine import MineConfig, mine
from data.mine.published.records import BAD
from data.mine.published.sources import PUBLISHED
from data.mine.source import Counts
from data.mine.writing import line_of


class Case(NamedTuple):
    source: str
    files: dict
    lines: dict
    left_out: dict | None = None
    flags: dict | None = None

    def __str__(self) -> str:
        return "-".join([self.source, next(iter(self.files)), *map(str, (self.flags or {}).values())])


def json_lines(*values) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def packed(name: str, content: str | bytes | dict) -> bytes:
    """The bytes of a file of this name: compressed, or an archive if its content is {name: content}."""
    if isinstance(content, dict):
        return _archive(name, {inner: packed(inner, each) for inner, each in content.items()})
    content = content.encode() if isinstance(content, str) else content
    if name.endswith(".zst"):
        import zstandard
        return zstandard.compress(content)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, lambda content: content)
    return pack(content)


def _archive(name: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for inner, content in files.items():
                archive.writestr(inner, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=f"w:{Path(name).suffix[1:].replace('tgz', 'gz')}") as archive:
        for inner, content in files.items():
            info = tarfile.TarInfo(inner)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_files(folder: Path, files: dict) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(packed(name, content))


def mined(source: str, inputs, output: Path, **flags) -> tuple[dict, dict]:
    """({output: its lines}, manifest) of a run of the whole command in this process; the lines of .tsv are lists."""
    found = next(each for each in PUBLISHED if each.name == source)
    mine(found, MineConfig(tuple(map(str, inputs)), str(output), 1, 64, found.settings(**flags)))
    manifest = json.loads((output / "manifest.json").read_text())
    return {name: read_output(output, name) for name in manifest["outputs"]}, manifest


def mined_in_memory(source: str, inputs, **flags) -> tuple[list[tuple[str, bytes]], Counts]:
    """((output, line), ..) of the source's functions alone, for many runs: nothing is written."""
    found = next(each for each in PUBLISHED if each.name == source)
    settings, counts, lines = found.settings(**flags), Counts(), []
    units = found.units(list(inputs))
    values = (value for unit in units for value in (found.mine or found.scatter)(unit, settings, counts))
    if found.join:
        groups: dict[str, list] = {}
        for key, record in values:
            groups.setdefault(key, []).append(json.loads(json.dumps(record)))
        values = (value for records in groups.values() for value in found.join(records, settings, counts))
    for output, value in values:
        with contextlib.suppress(BadLine):
            lines.append((output, line_of(output, value)))
    return lines, counts


def read_output(folder: Path, name: str) -> list:
    if name.endswith(".tsv"):
        with gzip.open(folder / f"{name}.gz", "rt", encoding="utf-8", newline="\n") as file:
            return [line.rstrip("\n").split("\t") for line in file]
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


SQUAD = {"version": "v2.0", "data": [
    {"title": "Rome", "paragraphs": [
        {"context": "Rome lies on the Tiber.", "qas": [
            {"id": "1", "question": " Where is Rome? ", "answers": [{"text": "on the Tiber", "answer_start": 10}],
             "is_impossible": False},
            {"id": "2", "question": "Where is Paris?", "answers": [], "plausible_answers": [], "is_impossible": True}]},
        {"context": "It has seven hills.", "qas": [
            {"id": "3", "question": "How many hills?", "answers": [{"text": "seven", "answer_start": 7}]},
            {"id": "4", "question": "Of the test set?", "answers": []}]}]}]}

NQ_TEXT = "<H1> Tiber </H1> <P> The Tiber is a river . </P> <Table> <Tr> 405 km </Tr> </Table>"
NQ_TOKENS = NQ_TEXT.split()


def natural_question(question: str, *spans: tuple[int, int], full: bool = False) -> dict:
    document = {"document_text": NQ_TEXT}
    if full:
        document = {"document_tokens": [{"token": token, "html_token": token[0] == "<"} for token in NQ_TOKENS]}
    return {"question_text": question, "example_id": 1, **document, "annotations": [
        {"long_answer": {"start_token": start, "end_token": end}, "short_answers": []} for start, end in spans]}


def trivia(number: str, question: str, value: str, aliases: list, pages: list, results: list) -> dict:
    return {"QuestionId": number, "Question": question, "Answer": {"Value": value, "Aliases": aliases},
            "EntityPages": [{"Filename": name, "Title": name} for name in pages],
            "SearchResults": [{"Filename": name, "Description": said, "Rank": 0} for name, said in results]}


TRIVIA = {"Data": [
    trivia("tc_1", "Which river flows through Rome?", "Tiber", ["The Tiber", "Tevere"], ["Rome.txt"],
           [("1/1_1.txt", "Rivers: the TIBER."), ("1/1_2.txt", "No river here.")]),
    trivia("tc_2", "Who knows?", "Nobody", [], [], [("1/1_1.txt", "Rivers.")])], "Domain": "Web", "Version": 1.0}
LONG = "The Tevere is a river that rises in the Apennines and flows past Rome to the sea"

NLI_HEADER = "gold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID\tlabel1\tlabel2\n"

TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en" segtype="sentence"/><body>
<tu><tuv xml:lang="en"><seg>Press <bpt i="1">&lt;b&gt;</bpt>Enter<ept i="1">&lt;/b&gt;</ept> &amp; wait.</seg></tuv>
    <tuv xml:lang="de"><seg>Enter dr\u00fccken
 und warten.</seg></tuv><tuv xml:lang="fr"><seg>Appuyez.</seg></tuv></tu>
<tu><tuv xml:lang="EN-us"><prop type="x">no text</prop><seg>Yes</seg></tuv><tuv lang="de-AT"><seg>Ja</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>No</seg></tuv><tuv xml:lang="fr"><seg></seg></tuv></tu>
<tu><tuv xml:lang="de"><seg>Nur deutsch</seg></tuv><tuv xml:lang="fr"><seg>Et fran\u00e7ais</seg></tuv></tu>
</body></tmx>"""

CASES = [
    Case("gooaq", {"gooaq.jsonl": json_lines(
        {"id": 1, "question": "what is a river?", "short_answer": "water", "answer": "Water that flows.",
         "answer_type": "feat_snip"},
        {"id": 2, "question": "how to swim?", "short_answer": None, "answer": "['Get in. ', \"Don't sink.\"]",
         "answer_type": "collection"},
        {"id": 3, "question": "no answer?", "short_answer": None, "answer": None, "answer_type": "unknown"})},
        {"gooaq_pairs": [["what is a river?", "Water that flows."], ["what is a river?", "water"],
                         ["how to swim?", "Get in. Don't sink."]]},
        {"question without an answer": 1}, {"short_answers": True}),
    Case("squad", {"train-v2.0.json": json.dumps(SQUAD, indent=2)},
         {"squad_pairs": [["Where is Rome?", "Rome lies on the Tiber."], ["How many hills?", "It has seven hills."]]},
         {"impossible question": 1, "question without an answer": 1}),
    Case("natural_questions", {"v1.0-simplified_simplified-nq-train.jsonl.gz": json_lines(
        natural_question("what is the tiber", (-1, -1), (3, 10)), natural_question("how long is it", (10, 16)),
        natural_question("why", (-1, -1)))},
        {"NQ-train_pairs": [["what is the tiber", "The Tiber is a river ."]]},
        {"question without a long answer": 1, "long answer that is a table or a list": 1}),
    Case("natural_questions", {"nq-train-00.jsonl.gz": json_lines(
        natural_question("how long is it", (10, 15), full=True))},
         {"NQ-train_pairs": [["how long is it", "405 km"]]}, {}, {"long_answers": "all"}),
    Case("natural_questions", {"NQ-open.train.jsonl": json_lines(
        {"question": "who built it", "answer": ["Nero", "the emperor Nero"]}, {"question": "who", "answer": []})},
        {"NQ-train_pairs": [["who built it", "Nero"]]}, {"question without an answer": 1}),
    Case("natural_questions", {"nq-train-kilt.jsonl": json_lines(
        {"id": "1", "input": "who built it", "output": [{"provenance": []}, {"answer": "Nero"}, {"answer": "X"}]})},
        {"NQ-train_pairs": [["who built it", "Nero"]]}),
    Case("eli5", {"eli5-train.jsonl": json_lines(
        {"q_id": "a", "title": "ELI5: why?", "selftext": "", "answers": {
            "a_id": ["x", "y", "z"], "text": ["No.", "Because.", "Because!"], "score": [1, 9, 9]}},
        {"q_id": "b", "title": "Why not?", "answers": {"text": ["Bad."], "score": [-3]}},
        {"q_id": "c", "title": "None?", "answers": {"text": [], "score": []}})},
        {"eli5_question_answer": [["ELI5: why?", "Because."]]},
        {"best answer has fewer votes than --min_answer_score": 1, "question without an answer": 1}),
    Case("searchqa", {"train.zip": {"train/000001.json": json.dumps({
        "question": "Its river is\nthe Tiber", "answer": "Rome", "search_results": [
            {"snippet": None}, {"snippet": "a\n b"}, {"snippet": "a b"}, {"snippet": "c"}, {"snippet": "d"}]}),
        "train/000002.json": json.dumps({"question": "?", "answer": "!", "search_results": []})}},
        {"searchQA_question_top5_snippets_merged": [
            ["Its river is the Tiber", "a b"], ["Its river is the Tiber", "c"]]},
        {"question without a snippet": 1}, {"snippets": 2}),
    Case("yahoo_answers", {"yahoo_answers_csv.tar.gz": {"yahoo_answers_csv/train.csv": (
        '"5","A ""title""","More\\nof it","One<br />two &amp; three\nfour"\n'
        '"1","Title","","Answer"\n"1","T","Q",""\n')}},
        {"yahoo_answers_title_answer": [['A "title"', "One two & three four"], ["Title", "Answer"]],
         "yahoo_answers_title_question": [['A "title"', "More of it"], ["T", "Q"]],
         "yahoo_answers_question_answer": [["More of it", "One two & three four"]]},
        {"title or answer is empty": 1, "title or question body is empty": 1, "question body or answer is empty": 2}),
    Case("yahoo_answers", {"nfL6.json": json.dumps([
        {"main_category": "A", "question": "Why?", "nbestanswers": ["Because.", "No."], "answer": "Because."}])},
        {"yahoo_answers_title_answer": [["Why?", "Because."]]}),
    Case("amazon_qa", {"train-qar.jsonl": json_lines(
        {"questionText": "Does it fit?", "answers": [
            {"answerText": "Yes"}, {"answerText": "No"}, {"answerText": "Yes"}]},
        {"questionText": "Well?", "answers": []})},
        {"amazon-qa-train-pairs": [["Does it fit?", "Yes"], ["Does it fit?", "No"]]},
        {"question without an answer": 1}),
    Case("triviaqa", {"triviaqa-rc.tar.gz": {
        "evidence/web/1/1_1.txt": "Tiber\n\nNothing in this long line is what was asked for, not at all\n",
        "evidence/web/1/1_2.txt": "No river here.", "evidence/wikipedia/Rome.txt": f"Rome\n{LONG} at Ostia.\n",
        "qa/web-train.json": json.dumps(TRIVIA, indent=4), "qa/web-dev.json": "[]", "qa/.web-train.json.swp": "x"}},
        {"TriviaQA_pairs": [["Which river flows through Rome?", " ".join(LONG.split()[:10])]]},
        {"question without a text that holds its answer": 1}, {"passage_words": 10}),
    Case("triviaqa", {"unfiltered-web-train.json": json.dumps(TRIVIA)},
         {"TriviaQA_pairs": [["Which river flows through Rome?", "Rivers: the TIBER."]]},
         {"question without a text that holds its answer": 1}, {"positives": "descriptions"}),
    Case("triviaqa", {"web-train.json": json.dumps(TRIVIA)}, {"TriviaQA_pairs": [
        ["Who knows?", "Nobody"], ["Which river flows through Rome?", "Tiber"]]}, {}, {"positives": "answers"}),
    Case("paq", {"PAQ.metadata.jsonl.gz": json_lines(
        {"question": "who was caesar", "answer": "a general", "answers": [{"passage_id": "2"}, {"passage_id": "1"}]},
        {"question": "who was nobody", "answer": "x", "answers": [{"passage_id": "9"}]}),
        "psgs_w100.tsv.gz": 'id\ttext\ttitle\n1\t"Rome ""is"" old."\tRome\n2\tCaesar was a general.\tCaesar\n'},
        {"PAQ_pairs": [["who was caesar", "Caesar was a general."]]},
        {"question whose passage is not among the inputs (give psgs_w100.tsv too, or set --positives=answers)": 1}),
    Case("paq", {"PAQ.tar.gz": {"PAQ/PAQ.filtered.jsonl": json_lines(
        {"question": "who", "answer": ["a general", "b"]})}},
         {"PAQ_pairs": [["who", "a general"]]}, {}, {"positives": "answers"}),
    Case("msmarco", {"triples.train.small.tar.gz": {"triples.train.small.tsv": "q\tp\tn\nq2\t\tn2\n"}},
         {"msmarco-query_passage_negative": [["q", "p", "n"]]}, {"empty text": 1}),
    Case("msmarco", {"train_v1.1.json.gz": json_lines(
        {"query": "q", "query_id": 1, "answers": ["a"], "passages": [
            {"is_selected": 0, "passage_text": "n1"}, {"is_selected": 1, "passage_text": "p1"},
            {"is_selected": 0, "passage_text": "n2"}, {"is_selected": 0, "passage_text": "n3"}]},
        {"query": "none", "passages": [{"is_selected": 0, "passage_text": "n1"}]})},
        {"msmarco-query_passage_negative": [["q", "p1", "n1"], ["q", "p1", "n2"]]},
        {"query without a selected passage": 1}, {"triplets_per_query": 2}),
    Case("msmarco_v2.1", {"train_v2.1.json.gz": json.dumps({
        "answers": {"0": ["a"], "1": ["b"]},
        "passages": {"0": [{"is_selected": 1, "passage_text": "p"}, {"is_selected": 0, "passage_text": "n"}],
                     "1": [{"is_selected": 1, "passage_text": "p"}]},
        "query": {"0": "q", "1": "r"}, "query_id": {"0": 5, "1": 6}})},
        {"msmarco-query_passage_negative": [["q", "p", "n"]]}, {"query without another passage": 1}),
    Case("msmarco_ids", {"qidpidtriples.train.full.2.tsv.gz": "7\t1\t2\n7\t1\t3\n8\t1\t9\n",
                         "queries.train.tsv": "7\tq7\n8\tq8\n", "collection.tsv": "1\tp1\n2\tp2\n3\tp3\n"},
         {"msmarco-query_passage_negative": [["q7", "p1", "p2"]]},
         {"more triplets of a query than --triplets_per_query": 1,
          "triplet of which a query or passage is not among the inputs": 1}, {"triplets_per_query": 1}),
    Case("flickr30k", {"results_20130124.token": (
        "1.jpg#0\tA dog runs .\n1.jpg#1\tA running dog .\n1.jpg#2\tA dog runs .\n2.jpg#0\tA cat .\n")},
         {"flickr30k_captions": [{"set": ["A dog runs .", "A running dog ."]}]},
         {"image with fewer than two different texts": 1}),
    Case("flickr30k", {"results.csv": (
        "image_name| comment_number| comment\n1.jpg| 0| A dog, | runs .\n1.jpg| 1| Dog .\n"
        "1.jpg| 4   A line of Kaggle's file\n")},
         {"flickr30k_captions": [{"set": ["A dog, | runs .", "Dog ."]}]}, {BAD: 1}),
    Case("coco", {"annotations_trainval2014.zip": {
        "annotations/instances_train2014.json": "{}", "__MACOSX/annotations/._captions_train2014.json": "x",
        "annotations/captions_train2014.json": json.dumps({
            "images": [{"id": 3, "file_name": "a]}\"b"}], "annotations": [
                {"image_id": 3, "id": 1, "caption": "A dog.\n"}, {"image_id": 4, "id": 2, "caption": "A cat."},
                {"image_id": 3, "id": 3, "caption": "One dog."}], "licenses": []})}},
        {"coco_captions": [{"set": ["A dog.", "One dog."]}]}, {"image with fewer than two different texts": 1}),
    Case("quora", {"quora_duplicate_questions.tsv": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        '0\t1\t2\t"How old is ""Rome""?"\tRome\'s age?\t1\n1\t1\t3\t"How old is ""Rome""?"\t"Why\nRome?"\t0\n'
        "2\t4\t5\t\tWhat?\t0\n3\t6\t7\tSame?\tSame?\t1\n")},
        {"quora_duplicates": [['How old is "Rome"?', "Rome's age?"]],
         "quora_duplicates_triplets": [
             {"query": 'How old is "Rome"?', "pos": ["Rome's age?"], "neg": ["Why Rome?"]}]},
        {"row with one question only": 1, "the two texts are the same": 1,
         "question without both a duplicate and a non-duplicate: no line of quora_duplicates_triplets": 2}),
    Case("wikianswers", {"part-00000.gz": "q:How old is rome?\tq:Age of rome?\tq:How old is rome?\tq:Third?\ta:Old.\n"
                                          "q:Alone?\ta:Yes.\n"},
         {"WikiAnswers_pairs": [{"set": ["How old is rome?", "Age of rome?"]}]},
         {"more questions of a cluster than --questions_per_set": 1, "cluster with fewer than two different texts": 1},
         {"questions_per_set": 2}),
    Case("altlex", {"altlex_train_paraphrases.tsv.zip": {
        "altlex_train_paraphrases.tsv": "It \"rained\" .\tRain fell .\nSame .\tSame .\nOne side .\t\n"}},
        {"altlex": [['It "rained" .', "Rain fell ."]]}, {"the two texts are the same": 1, "empty text": 1}),
    Case("simple_wikipedia", {"sentence-aligned.v2.tar.gz": {
        "sentence-aligned.v2/normal.aligned": "Rome\t0\tRome -LRB- Roma -RRB- is old .\nRome\t1\tSame .\n",
        "sentence-aligned.v2/simple.aligned": "Rome\t0\tRome is old .\nRome\t0\tSame .\n",
        "sentence-aligned.v2/README": ""}},
        {"SimpleWiki": [["Rome ( Roma ) is old .", "Rome is old ."]]}, {"the two texts are the same": 1}),
    Case("sentence_compression", {"sent-comp.train01.json.gz": json.dumps(
        {"graph": {"sentence": "Rome, the old city, is big."}, "compression": {"text": "Rome is big."}}, indent=2)
        + "\n\n" + json.dumps({"graph": {"sentence": "It is."}, "compression": {"text": "It is."}}, indent=2) + "\n"},
        {"sentence-compression": [["Rome, the old city, is big.", "Rome is big."]]}, {"the two texts are the same": 1}),
    Case("wikihow", {"wikihowSep.csv": (
        'overview,headline,text,sectionLabel,title\n" Swim ""well"".\nGet in. Get out.","\nGet in.","Text, with comma",'
        'Steps,How to Swim2\n" Swim ""well"".\nGet in. Get out.",Get out.,x,Steps,How to Swim2\n'
        ",,,Steps,How to Sink\n")},
        {"wikihow": [["Swim", 'Swim "well". Get in.']]},
        {"section of an article whose overview has been taken": 1, "empty title or overview": 1},
        {"summary_characters": 13}),
    Case("codesearchnet", {"python.zip": {
        "python/final/jsonl/train/python_train_0.jsonl.gz": json_lines(
            {"docstring": "Adds.", "code": 'def add(a):\n    """Adds."""\n    return a',
             "code_tokens": ["def", "add", "("]},
            {"docstring": "", "code": "x", "code_tokens": ["x"]}),
        "python/final/jsonl/test/python_test_0.jsonl.gz": "no\n"}},
        {"codesearchnet": [["Adds.", "def add ("]]}, {"empty comment or code": 1}),
    Case("allnli", {"snli_1.0.zip": {"snli_1.0/snli_1.0_train.jsonl": json_lines(
        *({"gold_label": label, "sentence1": "A man runs.", "sentence2": said} for label, said in (
            ("entailment", "He moves."), ("contradiction", "He sits."), ("neutral", "He is late."), ("-", "?"),
            ("entailment", "A person runs."), ("entailment", "He moves.")))), "snli_1.0/snli_1.0_dev.jsonl": "x"},
        "multinli_1.0_train.txt": NLI_HEADER + "contradiction\t( x )\tA man runs.\tHe flies.\t1c\tcontradiction\n"
                                               "entailment\t( x )\tOnly this.\tThis.\t2e\n"},
        {"AllNLI": [["A man runs.", "He moves.", "He flies."], ["A man runs.", "A person runs.", "He sits."]]},
        {"annotators who do not agree: the gold label is -": 1, "neutral hypothesis": 1,
         "premise without a contradiction": 1}),
    Case("paws", {"paws_wiki_labeled_final.tar.gz": {
        "final/train.tsv": "id\tsentence1\tsentence2\tlabel\n1\t`` A '' b .\tb `` A '' .\t1\n2\ta b\tb a\t0\n",
        "final/test.tsv": "x"}}, {"paws": [["`` A '' b .", "b `` A '' ."]]}, {"not a paraphrase": 1}),
    Case("specter", {
        "data.json": json.dumps({"q": {"n1": {"count": 1}, "p1": {"count": 5}, "p2": {"count": 5}, "n2": {"count": 1},
                                       "p3": {"count": 5}, "gone": {"count": 5}}, "r": {"p1": {"count": 5}},
                                 "s": {"p1": {"count": 5}, "n1": {"count": 1}}}),
        "metadata.json": json.dumps({name: {"paper_id": name, "title": f"Title\n{name}", "abstract": None}
                                     for name in ("q", "r", "s", "p1", "p2", "p3", "n1", "n2")}),
        "train.txt": "q\nr\n"},
        {"specter_train_triples": [["Title q", "Title p1", "Title n1"], ["Title q", "Title p2", "Title n2"],
                                   ["Title q", "Title p3", "Title n1"]]},
        {"query paper that is not in the list of ids": 1,
         "query paper without a cited paper or without a hard negative": 1,
         "triplet of which a paper has no title among the inputs": 1}),
    Case("s2orc", {"s2-corpus-000.gz": json_lines(
        {"id": "a", "title": "A", "paperAbstract": "About a.", "inCitations": [], "outCitations": ["b", "x"]},
        {"id": "b", "title": "B", "paperAbstract": "", "inCitations": ["a"], "outCitations": ["a"]})},
        {"S2ORC_title_abstract": [["A", "About a."]], "S2ORC_citation_pairs": [["A", "B"], ["B", "A"]]},
        {"paper without a title or an abstract": 1, "citation without two different abstracts": 2,
         "citation of a paper that is not among the inputs": 1}),
    Case("s2orc", {"metadata_0.jsonl.gz": json_lines(
        {"paper_id": "1", "title": "A", "abstract": "About a.", "outbound_citations": ["2"]},
        {"paper_id": "2", "title": "B", "abstract": "About b.", "outbound_citations": []})},
        {"S2ORC_title_abstract": [["B", "About b."], ["A", "About a."]],
         "S2ORC_citation_pairs_abstract": [["About a.", "About b."]]}, {}, {"citation_titles": False}),
    Case("tatoeba", {"sentences.tar.bz2": {"sentences.csv": (
        "1\teng\tHello.\n2\tdeu\tHallo.\n3\tfra\tBonjour.\n4\teng\tHi.\n5\tdeu\tAllein.\n6\t\\N\t?\n")},
                     "links.csv": "1\t2\n2\t1\n1\t3\n3\t1\n4\t2\n2\t4\n4\t9\n1\t6\n6\t1\n"},
         {"tatoeba_eng-deu.tsv": [["Hello.", "Hallo."], ["Hi.", "Hallo."]],
          "tatoeba_eng-fra.tsv": [["Hello.", "Bonjour."]]},
         {"sentence without a translation into --source_language": 1, "sentence of no known language": 1,
          "translation into another language than --target_languages": 1}),
    Case("ted", {"all_talks_train.tsv": "talk_name\ten\tes\tde\nx\tThat &apos;s it .\tEso es .\t__NULL__\n"
                                        "x\tOnly English .\t__NULL__\t_ _ NULL _ _\nx\t__NULL__\tSolo .\tNur .\n"},
         {"ted.tsv": [["That 's it .", "Eso es ."]]}, {"sentence without a translation": 1,
                                                       "no text in the language --source_language=en": 1}),
    Case("moses", {"de-en.txt.zip": {"TED2013.de-en.de": "Hallo .\t\u2028x\n\nJa\nGleich\n", "LICENSE": "x",
                                     "TED2013.de-en.en": "Hello .\nB\nYes\nGleich", "TED2013.de-en.ids": "1\n"}},
         {"TED2013.de-en.tsv": [["Hello .", "Hallo . x"], ["Yes", "Ja"]]},
         {"line that is empty on one side": 1, "the same text on both sides": 1}),
    Case("moses", {"setimes.bg-mk.txt.tgz": {"setimes.bg-mk.bg.txt": "a\n", "setimes.bg-mk.mk.txt": "b\n"}},
         {"setimes.bg-mk.tsv": [["a", "b"]]}),
    Case("moses", {"OpenSubtitles.es-pt.es": "Hola\n", "OpenSubtitles.es-pt.pt.gz": "Ola\n", "TED.es-fr.es": "Si\n",
                   "TED.es-fr.fr": "Oui\n", "TED.es-fr.ids": ""},
         {"OpenSubtitles.es-pt.tsv": [["Ola", "Hola"]], "TED.es-fr.tsv": [["Si", "Oui"]]}, {},
         {"source_language": "pt"}),
    Case("tmx", {"en-de.tmx.gz": TMX}, {"en-de.tsv": [
        ["Press Enter & wait.", "Enter dr\u00fccken und warten.", "Appuyez."], ["Yes", "Ja"]]},
        {"sentence without a translation": 1, "no text in the language --source_language=en": 1}),
    Case("tmx", {"a.tmx.zst": TMX.encode("utf-16")}, {
        "a.tsv": [["Press Enter & wait.", "Enter dr\u00fccken und warten."], ["Yes", "Ja"]]},
         {"sentence without a translation": 1, "no text in the language --source_language=en": 1},
         {"target_languages": ("de",)}),
]
