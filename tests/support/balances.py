"""A balance of an output, for tests of what is made of it: messages, reports, exit codes."""

from embedding.output.balance import Balance

BALANCE = Balance(
    listed=1204,
    already_done=310,
    embedded=892,
    failed=2,
    failed_before=0,
    changed=0,
    unchanged=0,
    windows_expected=5360,
    windows_stored=5360,
    windows_repeated=0,
    failures={},
    output={},
)
