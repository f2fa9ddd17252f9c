"""Notes on what to know about a data set before comparing results on it with published ones."""

CRITEO = "Source: Criteo Labs, Display Advertising Challenge (Kaggle, 2014)"
AVAZU = "Source: Avazu, Click-Through Rate Prediction (Kaggle, 2014)"
AFN_SPLIT = "split as in Cheng et al., Adaptive Factorization Network (AFN), AAAI 2020"
MOVIELENS = "Source: Harper and Konstan, The MovieLens Datasets: History and Context, ACM TiiS 2015"
OUR_SPLIT = (
    "The split is this project's own. Published numbers (BARS's x4 and others) have other splits and vocabularies, so "
    "compare models on this split only with each other."
)
X1_CONVENTIONS = (
    "The paper's numbers are means of 15 seeds, and BARS's are of the best tuned run. The paper's logloss column for "
    "other models is BARS's. Differences below 0.05 points of AUC are within the variation of the seeds."
)

# The notes by the reader in the experiment's [data] section. Readers that are not listed need no notes.
NOTES: dict[str, tuple[str, ...]] = {
    "frappe": (
        "Frappe_x1's official split. The valid and test files are byte-exact. In train, the items of the negatives "
        "were drawn again by the rule that valid and test show (train negatives re-drawn).",
        "`cost` is a function of `item` in every positive, but a negative keeps the `cost` of its positive: 12.5% of "
        "the negatives contradict the cost of their own item. A candidate in a request has its own cost, so the "
        "calibration measured here does not carry over to serving.",
        "Source: Baltrunas et al., Frappe: Understanding the Usage and Perception of Mobile App Recommendations "
        f"In-The-Wild, 2015; {AFN_SPLIT}.",
    ),
    "frappe_x1": (
        "Frappe_x1: 10 fields, 5,382 features, 202,027 / 57,722 / 28,860 rows. Its numbers may be compared with "
        "published ones if all three files are the published ones; say so if the negatives of train were drawn again.",
        "87.5% of the (user, item) pairs of the test positives are positive in train, while the pair of no test "
        "negative is negative in train: the task rewards remembering pairs. A negative keeps the `cost` of its "
        "positive, so the calibration does not carry over to serving.",
        X1_CONVENTIONS,
        f"Source: Baltrunas et al., Frappe, 2015; {AFN_SPLIT}.",
    ),
    "criteo": (OUR_SPLIT, f"{CRITEO}."),
    "criteo_x1": (
        "Criteo_x1: 39 fields, of which I1 to I13 are scaled numbers, 33,003,326 / 8,250,124 / 4,587,167 rows. Only "
        "the complete files may be compared with published numbers.",
        X1_CONVENTIONS,
        f"{CRITEO}; {AFN_SPLIT}.",
    ),
    "avazu": (OUR_SPLIT, f"{AVAZU}."),
    "avazu_x1": (
        "Avazu_x1: 22 fields (the paper's Table 1 says 23; its FLOPs fit 22), 28,300,276 / 4,042,897 / 8,085,794 rows. "
        "Only the complete files may be compared with published numbers.",
        X1_CONVENTIONS,
        f"{AVAZU}; {AFN_SPLIT}.",
    ),
    "movielens_tag": (
        "The task and the fields (user, item, tag) of MovielensLatest_x1, made from MovieLens-10M: 28 thousand "
        "features instead of 90 thousand, and a seventh of the rows. Its AUCs cannot be compared with published ones; "
        "compare models with each other.",
        f"{MOVIELENS}.",
    ),
    "movielens_latest_x1": (
        "MovielensLatest_x1: 3 fields (user, item, tag; the paper's Table 1 says 7), 1,404,801 / 401,372 / 200,686 "
        "rows, label rate 1/3. Only the complete files may be compared with published numbers.",
        X1_CONVENTIONS,
        f"{MOVIELENS}; {AFN_SPLIT}.",
    ),
    "movielens_1m": (
        "MovieLens-1M: a click is a rating of 4 or more, 57.5% of the rows; the rating itself is not a feature. The "
        "split is 8:1:1 by row, at random, because the log has no times: a user's later ratings help to predict the "
        "earlier ones.",
        "Published numbers on MovieLens-1M use other labels and splits, and the paper's MovieLens is another data set, "
        "the tagging log. Compare models with each other.",
        f"{MOVIELENS}.",
    ),
    "generated": ("Made by `python -m model.data.synthetic.generate`; it contains no personal data.",),
}
