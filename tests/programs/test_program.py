"""Lines of HLO in all ways of writing, also those that the local XLA does not print."""

import pytest

from manifold_optax.programs import collectives, dot_flops


class Text:
    """What a compiled program is to the reader: something with text."""

    def __init__(self, *lines: str, header: str = "", before: str = "") -> None:
        body = "\n".join(f"  {line}" for line in lines)
        self.text = f"HloModule m{header}\n\n{before}\nENTRY %main () -> f32[] {{\n"
        self.text += f"{body}\n}}\n"

    def as_text(self) -> str:
        return self.text


def rows(table: str) -> list[tuple[int, str]]:
    """Lines of a number and a piece of HLO."""
    pairs = (line.split(maxsplit=1) for line in table.strip().splitlines())
    return [(int(number), piece) for number, piece in pairs]


GROUPS = rows("""
    4  replica_groups={{0,1,2,3},{4,5,6,7}}
    2  replica_groups={{0,1},{2,3}}
    8  replica_groups={}
    4  replica_groups=[2,4]<=[8]
    2  replica_groups=[4,2]<=[2,4]T(1,0)
    4  replica_groups=mesh['x'=2,'y'=4] {'y'}
    8  replica_groups=mesh['x'=2,'y'=4] {'x','y'}
    2  replica_groups=mesh['x'=4,'y'=2], device_ids=([2,2,2]T(0,2,1)) {'x':(2)2}
    4  replica_groups=mesh['x'=4,'y'=2], device_ids=(4,5,6,7,0,1,2,3) {'x':(1)2,'y'}
""")


@pytest.mark.parametrize(("size", "groups"), GROUPS)
def test_every_way_of_writing_the_groups(groups: str, size: int) -> None:
    line = f"ROOT %a = f32[8]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%s"
    found = collectives(Text(line, header=", num_partitions=8, replica_count=1"))
    assert found.wire("all-reduce") == 2 * (size - 1) / size * 32


# Element types and their bytes; XLA packs what is narrower than a byte.
TYPES = rows("""
    64 f64[8]
    32 f32[8]{0}
    16 bf16[4,2]{1,0:T(8,128)(2,1)S(1)}
    16 u16[8]
    64 c64[8]
    8  f8e4m3fn[8]
    4  s4[8]
    8  pred[8]
    4  f32[]
    32 s32[<=8]
    0  f32[0,8]
    49 (f32[8]{0}, (bf16[8]{0:T(8)}, /*index=2*/pred[]), token[])
""")


@pytest.mark.parametrize(("size", "type_"), TYPES)
def test_every_element_type_has_its_bytes(type_: str, size: int) -> None:
    line = f"ROOT %a = {type_} collective-broadcast(%p), replica_groups={{{{0,1}}}}"
    assert collectives(Text(line)).wire("collective-broadcast") == size


# Result of the first half of an asynchronous pair, and the bytes sent in groups of two:
# only that of an all-reduce does not repeat the operands.
STARTS = rows("""
    32 f32[8] all-reduce-start
    48 (f32[8], f32[4]) all-reduce-start
    32 (f32[8], f32[16]) all-gather-start
    48 ((f32[8], f32[4]), (f32[16], f32[8])) all-gather-start
    16 ((f32[8]), f32[4], u32[]) reduce-scatter-start
    16 ((f32[8]{0:T(8,128)}), f32[8]{0:T(8,128)S(1)}, u32[]) all-to-all-start
    16 ((f32[8], s32[2]), f32[8]) ragged-all-to-all-start
    32 (f32[8], f32[8], u32[], u32[]) collective-permute-start
""")


@pytest.mark.parametrize(("wire", "start"), STARTS)
def test_of_an_asynchronous_pair_the_start_counts(start: str, wire: float) -> None:
    kind = start.rpartition(" ")[2].removesuffix("-start")
    groups = "replica_groups={{0,1}}, source_target_pairs={{0,1},{1,0}}"
    found = collectives(
        Text(
            f"%s = {start}(%p), {groups}",
            f"ROOT %d = f32[8]{{0}} {kind}-done(%s)",
        )
    )
    assert (found.count(), found.count(kind), found.wire(kind)) == (1, 1, wire)


def test_wrapped_computations_are_entered() -> None:
    before = """
%wrapped (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} all-to-all(%p), replica_groups={{0,1}}, dimensions={0}
}

%called (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %s = ((f32[8]), f32[8], u32[]) async-start(%p.1), calls=%wrapped
  ROOT %d = f32[8]{0} async-done(%s), calls=%wrapped
}
"""
    lines = (
        "%c = f32[8]{0} call(%x), to_apply=%called",
        "ROOT %f = f32[8]{0} conditional(%b, %c, %c), true_computation=%called, "
        "false_computation=%wrapped",
    )
    found = collectives(Text(*lines, before=before))
    assert (found.count(), found.wire("all-to-all")) == (2, 2 * 16)


def test_a_permutation_in_which_nobody_sends_is_free() -> None:
    pairs = "source_target_pairs={{0,0},{1,1}}"
    line = f"ROOT %a = f32[8]{{0}} collective-permute(%p), {pairs}"
    found = collectives(Text(line))
    assert (found.count("collective-permute"), found.wire()) == (1, 0)


def test_names_in_the_metadata_are_not_read() -> None:
    trap = 'metadata={op_name="all-reduce(} replica_groups={} calls=%nothing"}'
    line = f"ROOT %a = f32[8]{{0}} fusion(%p), kind=kLoop, calls=%inner, {trap}"
    before = "%inner (p: f32[8]) -> f32[8] {\n  ROOT %p = f32[8]{0} parameter(0)\n}\n"
    assert collectives(Text(line, before=before)).count() == 0


def test_library_calls_with_dimension_numbers_are_products() -> None:
    numbers = '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]'
    call = (
        "ROOT %g = (f32[8,32]{1,0}, s8[1024]{0}) custom-call(%a, %b), "
        'custom_call_target="__cublas$gemm", '
        f'backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":{{{numbers}'
        "}}}"
    )
    program = Text("%a = f32[8,16]{1,0} parameter(0)", call)
    assert dot_flops(program) == 2 * 8 * 16 * 32


@pytest.mark.parametrize(
    "call",
    [
        'custom-call(%a, %b), custom_call_target="__onednn$matmul"',
        "convolution(%a, %b), dim_labels=bf_io->bf",
        "ragged-dot(%a, %b, %c), lhs_contracting_dims={1}",
    ],
)
def test_products_that_the_text_does_not_tell_are_an_error(call: str) -> None:
    with pytest.raises(ValueError, match="cannot be counted from its text"):
        dot_flops(Text(f"ROOT %g = f32[8,32]{{1,0}} {call}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module @jit_f {}", "one compiled HLO module"),
        ("ENTRY %main () -> f32[] {\n  nonsense\n}", "Cannot read this line"),
        (
            "ENTRY %main () -> f32[] {\n  ROOT %a = f32[] all-reduce(%p), to=%s\n}",
            "Cannot read the replica groups of 'a'",
        ),
    ],
)
def test_text_that_is_no_program_is_refused(text: str, message: str) -> None:
    program = Text()
    program.text = text
    with pytest.raises(ValueError, match=message):
        collectives(program)


def test_a_misspelt_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of all-reduce"):
        collectives(Text()).count("all_reduce")
