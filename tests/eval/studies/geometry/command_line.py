"""The arguments of the commands on the tiny model."""


def words(place, *more):
    texts = ["--text", str(place / "one.txt"), "--other", str(place / "two.txt"), "--out", str(place / "out")]
    return [str(place / "model"), *texts, "--length", "128", "--windows", "2", "--queries", "12", *more]
