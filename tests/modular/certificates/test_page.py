"""The Python of docs/certificates.md runs, and prints what the page shows."""

import pytest

from modular.pages import check_page


@pytest.mark.slow
def test_blocks_run_and_print_what_the_page_shows(unhooked: None) -> None:
    # Training amplifies rounding: another compiler moves these numbers by 10 %.
    check_page("certificates.md", "page.py", rtol=0.3)
