"""What pyproject.toml cannot say: the repository's recipes/ is installed as llmxai/recipes."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["llmxai*"]), "llmxai.recipes"], package_dir={"llmxai.recipes": "recipes"})
