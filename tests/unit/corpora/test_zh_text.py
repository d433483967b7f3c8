"""Text for language models: what is taken of its files."""

import pytest

from speechlab import corpora
from speechlab.corpora import zh_text
from speechlab.errors import UserError


def test_runs_of_hanzi(tmp_path, monkeypatch):
    folder = tmp_path / "zh_text"

    def there(root, name, files, instead):
        folder.mkdir(exist_ok=True)
        (folder / "pos.txt").write_text("很好，我喜欢。OK 啊\n", encoding="utf-8")
        (folder / "neg.txt").write_text("\n2 天不好\n", encoding="utf-8")
        (folder / "199801.txt").write_text("1998-01/m 希望/v 的/u 新/a 世纪/n ，/w 人/n\n", encoding="utf-8")
        return folder

    monkeypatch.setattr(zh_text, "fetch_corpus", there)
    assert zh_text.fetch(tmp_path) == folder
    assert (folder / "text.txt").read_text(encoding="utf-8").split() == ["很好", "我喜欢", "天不好", "希望的新世纪"]
    with pytest.raises(UserError, match="without speech"):
        corpora.load("zh_text").prepare(folder, tmp_path)
