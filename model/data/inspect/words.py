"""What the words in a column's name usually mean in an ad log."""

import re

LABEL_WORDS = {"click", "clicks", "clicked", "clk", "isclick", "label", "labels", "target", "y", "outcome", "response"}
LABEL_WORDS |= {"event", "action", "behavior", "behaviour", "attributed", "converted", "conversion"}
CLICK_VALUES = {"click", "clicked", "clk", "yes", "y", "true", "t", "1", "1.0", "positive", "pos"}
OTHER_VALUES = {"no", "n", "false", "f", "0", "0.0", "-1", "noclick", "no click", "no_click", "no-click", "not clicked"}
OTHER_VALUES |= {
    "impression",
    "view",
    "viewed",
    "show",
    "skip",
    "pv",
    "none",
    "negative",
    "neg",
    "nonclick",
    "non-click",
}
TIME_WORDS = {"time", "timestamp", "ts", "date", "datetime", "at", "when", "dt", "day", "unixtime", "ms", "epoch"}
REQUEST_WORDS = {"request", "req", "requestid", "auction", "auctionid", "impression", "pageview", "serve", "bidrequest"}
USER_WORDS = {"user", "userid", "uid", "visitor", "member", "customer", "cookie", "device", "account", "ip", "msno"}
PREDICTION_WORDS = {"ctr", "pctr", "cvr", "prediction", "predicted", "pred", "prob", "probability"}
WEIGHT_WORDS = {"weight", "weights", "w"}
ITEM_WORDS = {"ad", "adid", "ads", "item", "itemid", "creative", "product", "sku", "offer", "movie", "article", "news"}
ID_WORDS = {"id", "code", "hash", "key", "zip", "postal", "type", "category", "cate", "hour", "weekday", "day", "month"}
ID_WORDS |= {"slot", "position", "pos", "os", "version", "channel", "app", "site", "group", "segment", "cluster", "ip"}
NUMBER_WORDS = {"price", "bid", "cost", "cpc", "cpm", "budget", "amount", "count", "num", "number", "n", "cnt", "total"}
NUMBER_WORDS |= {"avg", "mean", "sum", "rate", "ratio", "score", "depth", "duration", "seconds", "days", "length"}
NUMBER_WORDS |= {"size", "distance", "rating", "age", "income", "width", "height", "lat", "lon", "share", "views"}
CONTEXT_WORDS = USER_WORDS | {
    *("browser", "ua", "agent", "country", "city", "region", "state", "zip", "postal", "geo", "lat", "lon", "age"),
    *("gender", "sex", "income", "occupation", "education", "locale", "hour", "weekday", "weekend", "isweekend"),
    *("dow", "month", "daytime", "session", "page", "site", "url", "domain", "referrer", "referer", "publisher"),
    *("placement", "slot", "position", "pos", "network", "carrier", "operator", "connection", "conn", "isp"),
    *("exchange", "ssp", "platform", "os", "screen", "viewport", "query", "keyword", "search", "weather", "homework"),
    *("context", "person", "client", "day", "time", "host", "phone", "private", "mode"),
}
CANDIDATE_WORDS = ITEM_WORDS | {
    *("adgroup", "banner", "campaign", "advertiser", "brand", "goods", "deal", "candidate", "bid", "price", "cost"),
    *("cpc", "cpm", "budget", "landing", "title", "headline", "category", "cate", "genre", "video", "song", "track"),
    *("artist", "author", "book", "doc", "document", "seller", "shop", "merchant", "store", "format", "tag", "tags"),
}
# The place of an ad belongs to the context, even if the column's name begins with the ad: ad_slot, banner_pos.
ALWAYS_CONTEXT = {"slot", "position", "pos", "placement"}


def words(name: str) -> list[str]:
    """Return the words in a column's name, in lower case. Both userId and user_id give user and id."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=\d)", split.lower()) if word]
