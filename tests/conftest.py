"""Options of every suite."""

import re


def pytest_addoption(parser):
    parser.addoption("--name-regex", help="only tests whose id matches this regular expression")


def pytest_collection_modifyitems(config, items):
    regex = config.getoption("--name-regex")
    if regex:
        kept = [item for item in items if re.search(regex, item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
