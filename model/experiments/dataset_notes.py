"""What a reader has to know of a data set before comparing its numbers with published ones."""

_CRITEO = "Source: Criteo Labs, Display Advertising Challenge (Kaggle, 2014)."
_AVAZU = "Source: Avazu, Click-Through Rate Prediction (Kaggle, 2014)."
_AFN_SPLIT = "split as in Cheng et al., Adaptive Factorization Network (AFN), AAAI 2020"
_MOVIELENS = "Source: Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 2015"
_SPLIT_OF_OUR_OWN = (
    "Its split is this project's own. Published numbers (BARS's x4 and others) are of other splits and "
    "vocabularies: compare models with each other on it, and not with them."
)
_X1_CONVENTIONS = (
    "The paper's numbers are means of 15 seeds, BARS's the best tuned run; the paper's logloss column for "
    "other models is BARS's. A difference below 0.05 points of AUC is within the seeds'."
)

# By the reader's name in the experiment's [data] section; a reader that is not here needs no note.
NOTES: dict[str, tuple[str, ...]] = {
    "frappe": (
        "Frappe_x1's official split. Its valid and test files are byte-exact; in train the negatives' items "
        "were drawn again by the rule that valid and test show (train negatives re-drawn).",
        "`cost` is a function of `item` in every positive, but a negative keeps its positive's `cost`: 12.5% "
        "of the negatives contradict their item's own. A served candidate has its own cost, so the "
        "calibration measured here does not carry over to serving.",
        "Source: Baltrunas et al., Frappe: Understanding the Usage and Perception of Mobile App "
        "Recommendations In-The-Wild, 2015; split as in Cheng et al., Adaptive Factorization Network (AFN), "
        "AAAI 2020.",
    ),
    "frappe_x1": (
        "Frappe_x1: 10 fields, 5,382 features, 202,027 / 57,722 / 28,860 rows. Numbers may stand beside "
        "published ones when all three files are the published ones; say so if train's negatives were drawn "
        "again.",
        "87.5% of the test positives' (user, item) pairs are positive in train, while no test negative's pair"
        " is negative in train: the task rewards remembering pairs. A negative keeps its positive's `cost`, "
        "so the calibration does not carry over to serving.",
        _X1_CONVENTIONS,
        f"Source: Baltrunas et al., Frappe, 2015; {_AFN_SPLIT}.",
    ),
    "criteo": (_SPLIT_OF_OUR_OWN, _CRITEO),
    "criteo_x1": (
        "Criteo_x1: 39 fields, I1 to I13 as numbers already scaled, 33,003,326 / 8,250,124 / 4,587,167 rows. "
        "Only the whole files may stand beside published numbers.",
        _X1_CONVENTIONS,
        f"{_CRITEO[:-1]}; {_AFN_SPLIT}.",
    ),
    "avazu": (_SPLIT_OF_OUR_OWN, _AVAZU),
    "avazu_x1": (
        "Avazu_x1: 22 fields (the paper's Table 1 says 23; its FLOPs fit 22), 28,300,276 / 4,042,897 / "
        "8,085,794 rows. Only the whole files may stand beside published numbers.",
        _X1_CONVENTIONS,
        f"{_AVAZU[:-1]}; {_AFN_SPLIT}.",
    ),
    "movielens_tag": (
        "The task and the fields (user, item, tag) of MovielensLatest_x1, made from MovieLens-10M: 28 "
        "thousand features instead of 90, and a seventh of the rows. Not comparable with published AUCs: "
        "compare models with each other.",
        f"{_MOVIELENS}.",
    ),
    "movielens_latest_x1": (
        "MovielensLatest_x1: 3 fields (user, item, tag; the paper's Table 1 says 7), 1,404,801 / 401,372 / "
        "200,686 rows, label rate 1/3. Only the whole files may stand beside published numbers.",
        _X1_CONVENTIONS,
        f"{_MOVIELENS}; {_AFN_SPLIT}.",
    ),
    "movielens_1m": (
        "MovieLens-1M: a click is a rating of 4 or more, 57.5% of the rows; the rating itself is no feature. "
        "Split 8:1:1 by row, at random, for the log has no times: a user's later ratings help to guess the "
        "earlier ones.",
        "Published numbers on MovieLens-1M use other labels and splits, and the paper's MovieLens is another "
        "data set, the tagging log: compare models with each other.",
        f"{_MOVIELENS}.",
    ),
    "generated": ("Made by `python -m model.data.synthetic.generate`: no person's data.",),
}
