"""Tile sizes of the kernels that keep their tiles on chip."""

from collections.abc import Callable

from kernels.products import LANES


def largest_square_block(width: int, bytes_of: Callable[[int], int], room: int) -> int:
    """The largest of the square tiles of 512, 256 and 128 whose kernel fits: bytes_of(block) <= room.

    Raises ValueError, which names the width of the operands, if none does.
    """
    for block in (512, 256, 128):
        if bytes_of(block) <= room:
            return block
    raise ValueError(f"width {width} needs {bytes_of(128)} bytes of VMEM in tiles of 128 x 128, more than {room}: use "
                     "implementation='xla'")


def block_of_side(block: int, size: int) -> int:
    """The block, shortened to whole lanes if the `size` rows of its side need no more.

    Raises ValueError if it is not a multiple of 128 lanes.
    """
    check_multiple(block, LANES)
    return min(block, -(-size // LANES) * LANES)


def check_multiple(block: int, multiple: int) -> None:
    """Raises ValueError if the block is not a multiple of what the hardware works on."""
    if block % multiple:
        raise ValueError(f"a block of {block} is not a multiple of {multiple}")
