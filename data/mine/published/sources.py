"""The published data sets that `main.py mine` knows: file expected, licence, citation and functions of each.

Output names are those of the mixture of all-MiniLM-L6-v2 (its data_config.json), if the data set is in it.
"""

from collections.abc import Sequence
from pathlib import Path

from data.mine.published import inference_pairs, papers, paraphrases, passages, questions, translations
from data.mine.published.passages import together
from data.mine.source import NoSettings, Source, Unit

_PACKED = r"(\.(gz|bz2|xz|zst))?"
_ARCHIVE = r".*\.(zip|tar|tgz|tar\.(gz|bz2|xz|zst))"
_JSON_LINES = rf".*\.jsonl{_PACKED}"
_MS_MARCO_TERMS = "Microsoft's terms: research only, not commercial. Cite Bajaj et al. 2016, arXiv:1611.09268"
SMALL_FILES_OF_A_UNIT = 2000


def by_thousands(paths: Sequence[Path]) -> list[Unit]:
    """Units of many files, for data sets of hundreds of thousands of small ones."""
    return [tuple(paths[start:start + SMALL_FILES_OF_A_UNIT]) for start in range(0, len(paths), SMALL_FILES_OF_A_UNIT)]


QUESTIONS = [
    Source("gooaq", questions.GOOAQ.expected,
           "Apache-2.0; the answers are Google's. Cite Khashabi et al. 2021, GooAQ, arXiv:2104.08727",
           questions.GooaqSettings, questions.mine_gooaq, files=_JSON_LINES),
    Source("squad", questions.SQUAD.expected,
           "CC BY-SA 4.0, text of Wikipedia. Cite Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822",
           NoSettings, questions.mine_squad, files=rf".*train.*\.json{_PACKED}"),
    Source("natural_questions", questions.NATURAL_QUESTIONS.expected,
           "CC BY-SA 3.0, text of Wikipedia. Cite Kwiatkowski et al. 2019, TACL 7; KILT: Petroni et al. 2021, NAACL",
           questions.NaturalQuestionsSettings, questions.mine_natural_questions, files=rf".*train.*\.jsonl{_PACKED}"),
    Source("eli5", questions.ELI5.expected,
           "texts of Reddit's users, under its terms. Cite Fan et al. 2019, ACL; KILT: Petroni et al. 2021, NAACL",
           questions.Eli5Settings, questions.mine_eli5, files=rf".*train.*\.jsonl?{_PACKED}"),
    Source("searchqa", questions.SEARCH_QA.expected,
           "no licence is stated; questions of J! Archive, text of the web. Cite Dunn et al. 2017, arXiv:1704.05179",
           questions.SearchQaSettings, questions.mine_search_qa, files=rf".*\.json{_PACKED}|{_ARCHIVE}",
           units=by_thousands),
    Source("yahoo_answers", questions.YAHOO.expected,
           "Yahoo! Webscope: research only, not commercial. Cite Zhang et al. 2015, NIPS, arXiv:1509.01626",
           NoSettings, questions.mine_yahoo_answers, files=rf"(train\.csv|nfL6\.json){_PACKED}|{_ARCHIVE}"),
    Source("amazon_qa", questions.AMAZON_QA.expected,
           "texts of Amazon's users, for research. Cite Gupta et al. 2019, AmazonQA, IJCAI, arXiv:1908.04364",
           NoSettings, questions.mine_amazon_qa, files=rf"train.*\.jsonl{_PACKED}"),
]

PASSAGES = [
    Source("triviaqa", passages.TRIVIA_QA.expected,
           "research only: the questions and the evidence belong to their authors. Cite Joshi et al. 2017, ACL",
           passages.TriviaQaSettings, scatter=passages.scatter_trivia_qa, join=passages.join_trivia_qa,
           files=rf"(?!verified).*train\.json{_PACKED}|.*\.txt|{_ARCHIVE}", units=together),
    Source("paq", passages.PAQ.expected,
           "CC BY-SA 3.0, text of Wikipedia. Cite Lewis et al. 2021, PAQ, TACL, arXiv:2102.07033",
           passages.PaqSettings, scatter=passages.scatter_paq, join=passages.join_paq,
           files=rf"(PAQ.*\.jsonl|psgs_w100\.tsv){_PACKED}|{_ARCHIVE}"),
    Source("msmarco", passages.MS_MARCO.expected,
           _MS_MARCO_TERMS,
           passages.MsMarcoSettings, passages.mine_ms_marco,
           files=rf"(triples\.train.*\.tsv|train_v1.*\.json){_PACKED}|{_ARCHIVE}"),
    Source("msmarco_v2.1", passages.MS_MARCO_COLUMNS,
           _MS_MARCO_TERMS,
           passages.MsMarcoSettings, scatter=passages.scatter_ms_marco_columns, join=passages.join_ms_marco_columns,
           files=rf"train_v2.*\.json{_PACKED}"),
    Source("msmarco_ids", passages.MS_MARCO_IDS.expected,
           _MS_MARCO_TERMS,
           passages.MsMarcoIdSettings, scatter=passages.scatter_ms_marco_ids, join=passages.join_ms_marco_ids,
           files=rf"(qidpidtriples.*|queries\.train|collection)\.tsv{_PACKED}", units=together),
]

PARAPHRASES = [
    Source("flickr30k", paraphrases.FLICKR30K.expected,
           "research and education only, not commercial. Cite Young et al. 2014, TACL 2",
           NoSettings, paraphrases.mine_flickr30k, files=rf"(results.*\.token|results\.csv){_PACKED}|{_ARCHIVE}"),
    Source("coco", paraphrases.COCO.expected,
           "CC BY 4.0 (the annotations). Cite Chen et al. 2015, arXiv:1504.00325; Lin et al. 2014, arXiv:1405.0312",
           NoSettings, scatter=paraphrases.scatter_coco, join=paraphrases.join_coco,
           files=rf"captions_train.*\.json{_PACKED}|{_ARCHIVE}"),
    Source("quora", paraphrases.QUORA.expected,
           "Quora's terms: not commercial. Cite Iyer et al. 2017, First Quora Dataset Release: Question Pairs",
           NoSettings, scatter=paraphrases.scatter_quora, join=paraphrases.join_quora,
           files=rf"(quora.*\.tsv|train\.[ct]sv){_PACKED}|{_ARCHIVE}"),
    Source("wikianswers", paraphrases.WIKI_ANSWERS.expected,
           "no licence is stated; texts of WikiAnswers' users. Cite Fader et al. 2014, KDD, 10.1145/2623330.2623677",
           paraphrases.WikiAnswersSettings, paraphrases.mine_wiki_answers, files=rf"part-\d+.*{_PACKED}"),
    Source("altlex", paraphrases.ALTLEX.expected,
           "CC BY-SA 3.0, text of Wikipedia. Cite Hidey and McKeown 2016, ACL",
           NoSettings, paraphrases.mine_altlex, files=rf".*paraphrases.*\.tsv{_PACKED}|{_ARCHIVE}"),
    Source("simple_wikipedia", paraphrases.SIMPLE_WIKI,
           "CC BY-SA 3.0, text of Wikipedia. Cite Coster and Kauchak 2011, ACL; WikiAuto: Jiang et al. 2020, ACL",
           NoSettings, paraphrases.mine_simple_wiki,
           files=rf"((normal|simple)\.aligned|.*\.(src|dst)){_PACKED}|{_ARCHIVE}", units=together),
    Source("sentence_compression", paraphrases.SENTENCE_COMPRESSION.expected,
           "no licence is stated (provided as is); sentences of news. Cite Filippova and Altun 2013, EMNLP",
           NoSettings, paraphrases.mine_sentence_compression, files=rf"sent-comp\.train.*\.json{_PACKED}"),
    Source("wikihow", paraphrases.WIKI_HOW.expected,
           "CC BY-NC-SA 3.0, text of wikiHow. Cite Koupaee and Wang 2018, arXiv:1810.09305",
           paraphrases.WikiHowSettings, paraphrases.mine_wiki_how, files=rf"wikihow(Sep|All)\.csv{_PACKED}|{_ARCHIVE}"),
    Source("codesearchnet", paraphrases.CODE_SEARCH_NET.expected,
           "the licence of each repository (fields repo and url). Cite Husain et al. 2019, arXiv:1909.09436",
           paraphrases.CodeSearchNetSettings, paraphrases.mine_code_search_net,
           files=rf".*_train_\d+\.jsonl{_PACKED}|{_ARCHIVE}"),
    Source("allnli", inference_pairs.ALL_NLI.expected,
           "SNLI: CC BY-SA 4.0; MultiNLI: mostly the OANC's licence, fiction CC BY 3.0 and others. Cite Bowman et al. "
           "2015, arXiv:1508.05326; Williams et al. 2018, arXiv:1704.05426",
           NoSettings, scatter=inference_pairs.scatter_all_nli, join=inference_pairs.join_all_nli,
           files=rf".*_train\.(jsonl|txt){_PACKED}|{_ARCHIVE}"),
    Source("paws", inference_pairs.PAWS.expected,
           "free for any purpose with acknowledgement of Google LLC; text of Wikipedia. Cite Zhang et al. 2019, "
           "arXiv:1904.01130",
           NoSettings, inference_pairs.mine_paws, files=rf"(translated_)?train\.tsv{_PACKED}|{_ARCHIVE}"),
]

PAPERS = [
    Source("specter", papers.SPECTER.expected,
           "Apache-2.0 (code and data of SPECTER). Cite Cohan et al. 2020, ACL, arXiv:2004.07180",
           papers.SpecterSettings, scatter=papers.scatter_specter, join=papers.join_specter,
           files=rf"((meta)?data\.json|train\.txt){_PACKED}", units=together),
    Source("s2orc", papers.S2ORC.expected,
           "ODC-BY 1.0 (releases of 2020: CC BY-NC 4.0). Cite Lo et al. 2020, S2ORC, ACL; Ammar et al. 2018, NAACL",
           papers.S2orcSettings, scatter=papers.scatter_s2orc, join=papers.join_s2orc,
           files=rf"(.*\.jsonl|s2-corpus.*?){_PACKED}"),
]

TRANSLATIONS = [
    Source("tatoeba", translations.TATOEBA.expected,
           "CC BY 2.0 FR. Attribute the sentences to tatoeba.org",
           translations.TatoebaSettings, scatter=translations.scatter_tatoeba, join=translations.join_tatoeba,
           files=rf".*(sentences|links)\.(csv|tsv){_PACKED}|{_ARCHIVE}", units=together),
    Source("ted", translations.TED.expected,
           "CC BY-NC-ND 4.0 (TED). Cite Qi et al. 2018, NAACL, arXiv:1804.06323",
           translations.ColumnSettings, translations.mine_ted, files=rf"all_talks_train\.tsv{_PACKED}|{_ARCHIVE}"),
    Source("moses", translations.MOSES,
           "the licence of each corpus of OPUS. Cite Tiedemann 2012, LREC, and the corpus",
           translations.MosesSettings, translations.mine_moses,
           files=rf".*\w+-\w+\.(?!ids|xml|scores)\w+(\.txt)?{_PACKED}|{_ARCHIVE}", units=translations.moses_units),
    Source("tmx", translations.TMX,
           "the licence of each corpus. Of OPUS, cite Tiedemann 2012, LREC, and the corpus",
           translations.ColumnSettings, translations.mine_tmx, files=rf".*\.tmx{_PACKED}|{_ARCHIVE}"),
]

PUBLISHED = [*QUESTIONS, *PASSAGES, *PARAPHRASES, *PAPERS, *TRANSLATIONS]
