"""The digests of known data sets match the published ones."""

from tests.subset import FULL


def test_the_published_digests_are_those_of_fashion_mnist() -> None:
    # Each pair belongs to the same file: Debian's .gz files, with the name and time that their
    # headers leave out, have torchvision's MD5 sums.
    assert {file.name: file.md5_gz for file in FULL.files} == {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    }


def test_torchvision_names_the_same_md5_sums_and_mirrors() -> None:
    from torchvision.datasets import FashionMNIST

    ours = {f"{file.name}.gz": file.md5_gz for file in FULL.files}
    assert dict(FashionMNIST.resources) == ours
    assert list(FULL.mirrors) == FashionMNIST.mirrors
