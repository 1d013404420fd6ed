"""Runs a kernel's machine code for Hopper on the CPU: one program, one instruction after another.

The interpreter executes a kernel's Python; what the compiler and NVIDIA's assembler make of it is
not seen there, and once the assembler was wrong (docs/log.md). Here the disassembled code itself
runs: 32 threads a warp in lock step, as numpy arrays, with shared memory, bulk copies (TMA),
barriers and matrix products (HGMMA). It knows the instructions of the kernels below in bf16, gives
up on any other, and has no notion of time: races are not seen, wrong code is.

    python machine_code.py      # errors of each case by each assembler

Meanings are those of the CUDA binary utilities' instruction list and of the PTX manual for the
instruction each comes from; layouts of matrix operands are the PTX manual's, 9.7.15.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import compile_ahead  # of this folder, which a script has on its path
import kernel_cases
import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
PARAMETERS = 0x210  # where a kernel's parameters start among its constants, on sm_90
CONSTANTS_AT = 0x198  # and where there the generic address of the first one is kept
WINDOW = 0x7000_0000_0000  # that address, as we choose it
SHARED_BASE = 0x400  # dynamic shared memory starts after what the system keeps
ZEROS = 255  # the number of the register that reads as zero

Array = np.ndarray[Any, np.dtype[Any]]
U32, U64 = np.uint32, np.uint64
LOW = U64(0xFFFF_FFFF)


def floats(bits: Array) -> Array:
    return bits.astype(U32).view(np.float32)


def bits(values: Array) -> Array:
    return np.asarray(values, np.float32).view(U32)


def from_bf16(halves: Array) -> Array:
    return (halves.astype(U32) << U32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """Rounded to nearest, ties to even; no NaNs expected."""
    raw = bits(values).astype(U64)
    return ((raw + U64(0x7FFF) + (raw >> U64(16) & U64(1))) >> U64(16)).astype(U32)


def signed(values: Array) -> Array:
    return values.astype(U32).view(np.int32)


@dataclass(frozen=True)
class Instruction:
    """`@!P0 IADD3.X R1, P2, R3, ...`: guard, name, flags after the dots, operands."""

    guard: str
    name: str
    flags: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


def parse(disassembly: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of a listing by nvdisasm -c, and what its labels point at."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        if found := re.match(r"\s*/\*[0-9a-f]{4,5}\*/\s+(?:@(\S+)\s+)?(\S+?)\s+([^;]*);", line):
            guard, name, rest = found[1] or "PT", found[2], found[3].replace(".reuse", "").strip()
            operands = tuple(re.split(r",\s*(?![^\[]*\])", rest)) if rest else ()
            flags = tuple(name.split(".")[1:])
            code.append(Instruction(guard, name.split(".")[0], flags, operands, line.strip()))
        elif found := re.match(r"\s*/\*[0-9a-f]{4,5}\*/\s+(?:@(\S+)\s+)?([A-Z.]+)\s*;", line):
            name = found[2].split(".")
            code.append(Instruction(found[1] or "PT", name[0], tuple(name[1:]), (), line.strip()))
    return code, labels


def swizzled(address: Array, row_bytes: int) -> Array:
    """Where shared memory keeps a byte: 16-byte pieces change place by row, against conflicts."""
    return address ^ (address >> 7 & (row_bytes // 16 - 1)) << 4


@dataclass
class Barrier:
    """An mbarrier for one arrival: its phase ends when that and all announced bytes have come."""

    waiting: int = 1
    bytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        if self.waiting == 0 and self.bytes == 0:
            self.waiting, self.phase = 1, self.phase ^ 1


class Machine:
    """Registers and memory of one program. Uniform registers are kept per thread, all alike."""

    def __init__(
        self,
        warps: int,
        constants: bytes,
        descriptors: dict[int, TensorDescriptor],
        tensors: list[torch.Tensor],
    ) -> None:
        self.threads = 32 * warps
        self.registers = np.zeros((256, self.threads), U32)
        self.uniform = np.zeros((64, self.threads), U32)
        names = [f"{kind}{i}" for kind in ("P", "UP") for i in range(7)]
        self.predicates = {name: np.zeros(self.threads, bool) for name in names}
        self.predicates |= {name: np.ones(self.threads, bool) for name in ("PT", "UPT")}
        self.shared = np.zeros(1 << 19, np.uint8)
        self.constants = constants
        self.memory = [(t.data_ptr(), t.view(torch.uint8).view(-1).numpy()) for t in tensors]
        self.barriers: dict[int, Barrier] = {}
        self.descriptors = descriptors
        self.program = 0
        self.on = np.ones(self.threads, bool)

    # ---- operands -------------------------------------------------------------------------------

    def file(self, text: str) -> tuple[Array, int]:
        kind, number = re.match(r"(U?)R(Z|\d+)", text).groups()  # type: ignore[union-attr]
        index = (63 if kind else ZEROS) if number == "Z" else int(number)
        return (self.uniform if kind else self.registers), index

    def read(self, text: str, *, real: bool = False) -> Array:
        """An operand as 32-bit words; `real` negates and takes magnitudes as of floats."""
        if text.startswith("!"):
            return ~self.read(text[1:])
        if text in self.predicates:
            return self.predicates[text]
        negative = text.startswith("-") and not re.match(r"-(0x|\d)", text)
        inverted, magnitude = text.startswith("~"), "|" in text
        text = text.lstrip("~").strip("|") if not negative else text[1:].strip("|")
        if match := re.match(r"c\[0x0\]\[0x([0-9a-f]+)\]", text):
            at = int(match[1], 16)
            value = self.full(int.from_bytes(self.constants[at : at + 4], "little"))
        elif re.match(r"U?R", text):
            file, index = self.file(text)
            value = file[index].copy()
        elif real and not text.startswith(("0x", "-0x")):
            value = self.full(int(bits(np.float32(text.replace("+INF", "inf")))))
        else:
            value = self.full(int(text, 0) & 0xFFFF_FFFF)
        if real:
            value = value & U32(0x7FFF_FFFF) if magnitude else value
            return value ^ U32(0x8000_0000) if negative else value
        value = ~value if inverted else value
        return ~value + U32(1) if negative else value

    def full(self, value: int) -> Array:
        return np.full(self.threads, value, U32)

    def wide(self, text: str) -> Array:
        """A pair of registers or constants as 64 bits."""
        if match := re.match(r"c\[0x0\]\[0x([0-9a-f]+)\]", text):
            at = int(match[1], 16)
            return np.full(
                self.threads, int.from_bytes(self.constants[at : at + 8], "little"), U64
            )
        if not re.match(r"U?R", text):
            return np.full(self.threads, int(text, 0) & (2**64 - 1), U64)
        file, index = self.file(text)
        if text in ("RZ", "URZ"):
            return np.zeros(self.threads, U64)
        return file[index].astype(U64) | file[index + 1].astype(U64) << U64(32)

    def write(self, text: str, value: Array, offset: int = 0) -> None:
        if text in self.predicates:
            if text not in ("PT", "UPT"):
                self.predicates[text] = np.where(self.on, value, self.predicates[text])
        elif text not in ("RZ", "URZ"):
            file, index = self.file(text)
            file[index + offset] = np.where(
                self.on, (value & LOW).astype(U32), file[index + offset]
            )

    def write_wide(self, text: str, value: Array) -> None:
        if text not in ("RZ", "URZ"):
            self.write(text, value & LOW)
            self.write(text, value >> U64(32), 1)

    def address(self, text: str) -> Array:
        """`[R1+UR2+0x10]`, `desc[UR4][R2.64+0x10]`: the sum."""
        total = np.zeros(self.threads, np.int64)
        inner = re.search(r"\[([^\]]*)\]$", text)
        assert inner, text
        for part in inner[1].split("+"):
            if ".64" in part:
                total = total + self.wide(part.replace(".64", "")).astype(np.int64)
            elif re.match(r"U?R", part):
                total = total + self.read(part.split(".")[0]).astype(np.int64)
            else:
                total = total + int(part, 0)
        return total

    def place(self, address: int, size: int) -> Array:
        """The bytes of a tensor that a global address means."""
        for start, data in self.memory:
            if start <= address and address + size <= start + data.size:
                return data[address - start : address - start + size]
        raise IndexError(f"no tensor holds the {size} bytes at {address:#x}")

    # ---- running --------------------------------------------------------------------------------

    def run(self, code: list[Instruction], labels: dict[str, int]) -> None:
        """Threads that branched apart wait for the ones behind, so they meet again."""
        at = np.zeros(self.threads, np.int64)
        alive = np.ones(self.threads, bool)
        while alive.any():
            here = int(at[alive].min())
            instruction, together = code[here], alive & (at == here)
            at[together] = here + 1
            self.on = together & self.read(instruction.guard)
            if instruction.name == "BAR":
                assert (together == alive).all(), f"not all threads reach {instruction.text}"
            elif instruction.name == "BRA":
                at[self.on] = labels[instruction.operands[-1].strip("`()")]
            elif instruction.name == "EXIT":
                alive &= ~self.on | ~self.conditions(instruction)
            elif instruction.name not in IGNORED and self.on.any():
                if (execute := INSTRUCTIONS.get(instruction.name)) is None:
                    raise NotImplementedError(instruction.text)
                execute(self, instruction)

    def conditions(self, instruction: Instruction) -> Array:
        return np.logical_and.reduce([self.on, *map(self.read, instruction.operands)])

    # ---- integers -------------------------------------------------------------------------------

    def select_sources(self, i: Instruction) -> tuple[list[str], list[str]]:
        """Predicates written before the sources (carries), and the sources."""
        rest = list(i.operands[1:])
        carries = []
        while re.fullmatch(r"U?P(\d|T)", rest[0]):
            carries.append(rest.pop(0))
        return carries, rest

    def add(self, i: Instruction) -> None:
        carries, sources = self.select_sources(i)
        if "64" in i.flags:
            total = sum((self.wide(s) for s in sources), np.zeros(self.threads, U64))
            return self.write_wide(i.operands[0], total)
        count = 4 if "X" not in i.flags else len(sources)
        total = sum((self.read(s).astype(U64) for s in sources[:count]), np.zeros(1, U64))
        self.write(i.operands[0], total)
        for level, carry in enumerate(carries, 1):
            self.write(carry, total >> U64(32) >= U64(level))

    def multiply_add(self, i: Instruction) -> None:
        _, (a, b, c, *carry) = self.select_sources(i)
        if "WIDE" in i.flags:
            if "U32" in i.flags:
                product = self.read(a).astype(U64) * self.read(b).astype(U64)
            else:
                product = (signed(self.read(a)).astype(np.int64) * signed(self.read(b))).view(U64)
            return self.write_wide(i.operands[0], product + self.wide(c))
        if "HI" in i.flags:
            product = self.read(a).astype(U64) * self.read(b).astype(U64)
            return self.write(i.operands[0], (product >> U64(32)) + self.read(c).astype(U64))
        total = self.read(a).astype(U64) * self.read(b).astype(U64) + self.read(c).astype(U64)
        if "X" in i.flags:
            total = total + self.read(carry[0]).astype(U64)
        self.write(i.operands[0], total)

    def shift_add(self, i: Instruction) -> None:
        """LEA: (a << n) + b; HI: its upper half, of a 64-bit a, with the lower half's carry."""
        carries, (a, b, *rest) = self.select_sources(i)
        low = self.read(a)
        if "HI" not in i.flags:
            shifted = low.astype(U64) << U64(int(rest[0], 0)) & LOW
            total = shifted + self.read(b).astype(U64)
        else:
            if "SX32" in i.flags:
                whole = signed(low).astype(np.int64).view(U64)
            else:
                whole = low.astype(U64) | self.read(rest.pop(0)).astype(U64) << U64(32)
            total = (whole << U64(int(rest[0], 0)) >> U64(32)) + self.read(b).astype(U64)
            if "X" in i.flags:
                total = total + self.read(rest[1]).astype(U64)
        self.write(i.operands[0], total)
        for carry in carries:
            self.write(carry, total >> U64(32) >= U64(1))

    def shift(self, i: Instruction) -> None:
        target, low, count, high = i.operands
        by, pair = self.read(count).astype(U64), self.read(low).astype(U64)
        pair |= self.read(high).astype(U64) << U64(32)
        if i.flags[0] == "L":
            shifted = pair << by
            return self.write(target, shifted >> U64(32) if "HI" in i.flags else shifted)
        if "S32" in i.flags:
            return self.write(target, (signed(self.read(high)) >> by.astype(np.int32)).view(U32))
        self.write(target, pair >> (by + U64(32) if "HI" in i.flags else by))

    def extend(self, i: Instruction) -> None:
        target, source, width = i.operands
        size = int(width, 0)
        value = self.read(source) & U32((1 << size) - 1)
        if "U32" not in i.flags:
            value = np.where(
                value >> U32(size - 1), value | U32(-(1 << size) & 0xFFFF_FFFF), value
            )
        self.write(target, value)

    def logic(self, i: Instruction) -> None:
        """LOP3: bit k of the table answers for the inputs whose bits spell k."""
        operands = list(i.operands)
        test = operands.pop(0) if operands[0] in self.predicates else "PT"
        value = self.table([self.read(x) for x in operands[1:4]], int(operands[4], 0), U32)
        self.write(operands[0], value)
        self.write(test, value != 0)

    def predicate_logic(self, i: Instruction) -> None:
        inputs = [self.read(x) for x in i.operands[2:5]]
        for target, table in zip(i.operands[:2], i.operands[5:7], strict=True):
            self.write(target, self.table(inputs, int(table, 0), bool))

    def table(self, inputs: list[Array], table: int, kind: type) -> Array:
        value = np.zeros(self.threads, kind)
        for k in range(8):
            if table >> k & 1:
                a, b, c = (x if k >> (2 - n) & 1 else ~x for n, x in enumerate(inputs))
                value |= a & b & c
        return value

    def compare(self, i: Instruction) -> None:
        """ISETP: compared, combined with a predicate; EX: the upper half, after the lower."""
        kind = (lambda x: x) if "U32" in i.flags else signed
        a, b = kind(self.read(i.operands[2])), kind(self.read(i.operands[3]))
        found = {
            "LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b, "NE": a != b,
        }[i.flags[0]]  # fmt: skip
        if "EX" in i.flags:
            found = np.where(a == b, self.read(i.operands[5]), found)
        assert "AND" in i.flags, i.text
        self.write(i.operands[0], found & self.read(i.operands[4]))

    def smaller(self, i: Instruction) -> None:
        """VIMNMX, and VIADDMNMX of a sum: the smaller where the last operand holds."""
        *sources, limit, choose = i.operands[1:]
        a = signed(sum((self.read(s) for s in sources), self.full(0)))
        b = signed(self.read(limit))
        value = np.where(self.read(choose), np.minimum(a, b), np.maximum(a, b))
        self.write(i.operands[0], value.view(U32))

    def permute(self, i: Instruction) -> None:
        """PRMT: each nibble of the selector names one of eight bytes."""
        a, selector, b = (self.read(x) for x in i.operands[1:4])
        pool = np.stack([word >> U32(8 * k) & U32(255) for word in (a, b) for k in range(4)])
        value = self.full(0)
        for k in range(4):
            nibble = (selector >> U32(4 * k) & U32(15)).astype(int)
            assert (nibble < 8).all(), i.text
            value |= pool[nibble, np.arange(self.threads)] << U32(8 * k)
        self.write(i.operands[0], value)

    def pack_predicates(self, i: Instruction) -> None:
        kind = "UP" if i.name == "UP2UR" else "P"
        mask = int(i.operands[3], 0)
        flags = (self.predicates[f"{kind}{k}"].astype(U32) << U32(k) for k in range(7))
        kept = self.read(i.operands[2]) & U32(~mask & 0xFFFF_FFFF)
        self.write(i.operands[0], kept | sum(flags, self.full(0)) & U32(mask))

    def to_uniform(self, i: Instruction) -> None:
        """R2UR: the value of a warp's first thread that takes part."""
        value = self.read(i.operands[-1]).reshape(-1, 32)
        first = self.on.reshape(-1, 32).argmax(1)
        self.write(i.operands[0], np.repeat(value[np.arange(len(first)), first], 32))

    def vote(self, i: Instruction) -> None:
        votes = self.read(i.operands[1]).reshape(-1, 32)
        self.write(
            i.operands[0], np.repeat(votes.any(1) if "ANY" in i.flags else votes.all(1), 32)
        )

    def special(self, i: Instruction) -> None:
        values = {"SR_TID.X": np.arange(self.threads), "SR_CTAID.X": self.full(self.program)}
        self.write(i.operands[0], values.get(i.operands[1], self.full(0)).astype(U32))

    def copy(self, i: Instruction) -> None:
        if "64" in i.flags:
            return self.write_wide(i.operands[0], self.wide(i.operands[1]))
        self.write(i.operands[0], self.read(i.operands[1]))

    def clear_pair(self, i: Instruction) -> None:
        self.write_wide(i.operands[0], np.zeros(self.threads, U64))

    def magnitude(self, i: Instruction) -> None:
        self.write(i.operands[0], np.abs(signed(self.read(i.operands[1]))).view(U32))

    def choose(self, i: Instruction) -> None:
        a, b, condition = (self.read(x) for x in i.operands[1:4])
        self.write(i.operands[0], np.where(condition, a, b))

    # ---- floats ---------------------------------------------------------------------------------

    def real(self, i: Instruction) -> None:
        a, b, *c = (floats(self.read(x, real=True)) for x in i.operands[1:])
        with np.errstate(over="ignore", invalid="ignore"):
            value = {"FADD": a + b, "FMUL": a * b, "FFMA": a * b + (c[0] if c else 0)}[i.name]
        self.write(i.operands[0], bits(value))

    def function(self, i: Instruction) -> None:
        function = {"EX2": np.exp2, "RCP": np.reciprocal}[i.flags[0]]
        with np.errstate(over="ignore", divide="ignore"):
            value = function(floats(self.read(i.operands[1], real=True)))
        self.write(i.operands[0], bits(value))

    def compare_real(self, i: Instruction) -> None:
        a, b = (floats(self.read(x, real=True)) for x in i.operands[2:4])
        found = {
            "LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b,
            "LTU": ~(a >= b), "LEU": ~(a > b), "GTU": ~(a <= b), "GEU": ~(a < b), "NEU": a != b,
        }[i.flags[0]]  # fmt: skip
        self.write(i.operands[0], found & self.read(i.operands[4]))

    def extreme(self, i: Instruction) -> None:
        a, b = (floats(self.read(x, real=True)) for x in i.operands[1:3])
        smaller = self.read(i.operands[3])
        self.write(i.operands[0], bits(np.where(smaller, np.minimum(a, b), np.maximum(a, b))))

    def choose_real(self, i: Instruction) -> None:
        a, b = (self.read(x, real=True) for x in i.operands[1:3])
        self.write(i.operands[0], np.where(self.read(i.operands[3]), a, b))

    def shuffle(self, i: Instruction) -> None:
        """SHFL.BFLY: the value of the thread whose number differs in these bits."""
        assert i.flags[0] == "BFLY", i.text
        partner = np.arange(self.threads) ^ int(i.operands[3], 0)
        self.write(i.operands[1], self.read(i.operands[2])[partner])

    def to_real(self, i: Instruction) -> None:
        self.write(i.operands[0], bits(self.read(i.operands[1]).astype(np.float32)))

    def to_integer(self, i: Instruction) -> None:
        self.write(i.operands[0], floats(self.read(i.operands[1])).astype(np.int64).view(U64))

    def pack(self, i: Instruction) -> None:
        assert "BF16" in i.flags, i.text
        high, low = (to_bf16(floats(self.read(x, real=True))) for x in i.operands[1:3])
        self.write(i.operands[0], high << U32(16) | low)

    # ---- memory ---------------------------------------------------------------------------------

    def width(self, i: Instruction) -> int:
        return 4 if "128" in i.flags else 2 if "64" in i.flags else 1

    def load(self, i: Instruction) -> None:
        where, size = self.address(i.operands[1]), 4 * self.width(i)
        for thread in np.flatnonzero(self.on) if i.operands[0] != "RZ" else ():
            at = int(where[thread])
            data = self.shared[at : at + size] if i.name == "LDS" else self.place(at, size)
            file, index = self.file(i.operands[0])
            file[index : index + size // 4, thread] = data.copy().view(U32)

    def store(self, i: Instruction) -> None:
        where, size = self.address(i.operands[0]), 4 * self.width(i)
        file, index = self.file(i.operands[1])
        for thread in np.flatnonzero(self.on):
            at = int(where[thread])
            target = self.shared[at : at + size] if i.name == "STS" else self.place(at, size)
            words = file[index : index + size // 4, thread] if index != ZEROS else np.zeros(4, U32)
            target[:] = words[: size // 4].copy().view(np.uint8)

    def copy_async(self, i: Instruction) -> None:
        """LDGSTS: a word from global to shared memory, or zero."""
        to, source = self.address(i.operands[0]), self.address(i.operands[1])
        wanted = self.read(i.operands[2]) if len(i.operands) > 2 else self.predicates["PT"]
        size = 4 * self.width(i)
        for thread in np.flatnonzero(self.on):
            data = self.place(int(source[thread]), size) if wanted[thread] else 0
            self.shared[int(to[thread]) : int(to[thread]) + size] = data

    def matrices(self, i: Instruction) -> None:
        """LDSM, STSM: 8 x 8 matrices of halves; a thread holds two neighbours of each."""
        loads = i.name == "LDSM"
        where = self.address(i.operands[loads])
        file, index = self.file(i.operands[not loads])
        lane = np.arange(32)
        for warp in range(self.threads // 32):
            lanes = slice(warp * 32, warp * 32 + 32)
            for k in range(int(i.flags[-1])):
                rows = where[lanes][k * 8 : k * 8 + 8, None] + np.arange(16)
                if loads:
                    matrix = self.shared[rows].view(np.uint16)
                    matrix = matrix.T if "MT88" in i.flags else matrix
                    low, high = (matrix[lane // 4, lane % 4 * 2 + n].astype(U32) for n in (0, 1))
                    file[index + k, lanes] = low | high << U32(16)
                else:
                    matrix, word = np.zeros((8, 8), np.uint16), file[index + k, lanes]
                    matrix[lane // 4, lane % 4 * 2] = word & U32(0xFFFF)
                    matrix[lane // 4, lane % 4 * 2 + 1] = word >> U32(16)
                    matrix = matrix.T.copy() if "MT88" in i.flags else matrix
                    self.shared[rows] = matrix.view(np.uint8)

    def barrier(self, i: Instruction) -> None:
        """SYNCS: mbarriers made, announced bytes with an arrival, and phases waited for."""
        if "CCTL" in i.flags:
            return
        where = self.address(i.operands[1])
        thread = int(np.flatnonzero(self.on)[0])
        if "EXCH" in i.flags:
            self.barriers[int(where[thread])] = Barrier()
        elif "ARRIVE" in i.flags:
            barrier = self.barriers[int(where[thread])]
            barrier.bytes += int(self.read(i.operands[2])[thread])
            barrier.waiting -= 1
            barrier.settle()
        else:
            parity = self.read(i.operands[2]) >> U32(31)
            assert self.on.all(), i.text
            done = np.array([self.barriers[int(at)].phase for at in where]) != parity
            assert done.all(), f"waits for ever: {i.text}"
            self.write(i.operands[0], done)

    def bulk_copy(self, i: Instruction) -> None:
        """UTMALDG: a box of a tensor, zeros past its end, in the swizzled order."""
        first = [self.file(re.sub(r"[\[\]]", "", x))[1] for x in i.operands]
        rank = int(i.flags[0][0])
        for warp in np.flatnonzero(self.on.reshape(-1, 32).any(1)):
            word = self.uniform[:, warp * 32]
            target, barrier = (int(word[first[0] + n]) for n in range(2))
            corner = [int(signed(word[first[0] + 2 + n])) for n in reversed(range(rank))]
            descriptor = self.descriptors[int(word[first[1]]) | int(word[first[1] + 1]) << 32]
            sizes = list(descriptor.block_shape)
            sizes[-1] = min(sizes[-1], 64)  # one copy fills a swizzled row of 128 bytes at most
            box = np.zeros(sizes, np.uint16)
            source = descriptor.base.view(descriptor.shape).view(torch.int16).numpy()
            part = source[tuple(slice(c, c + n) for c, n in zip(corner, sizes, strict=True))]
            box[tuple(slice(0, n) for n in part.shape)] = part.view(np.uint16)
            place = swizzled(target + np.arange(box.size) * 2, sizes[-1] * 2)
            self.shared[place], self.shared[place + 1] = box.ravel() & 255, box.ravel() >> 8
            self.barriers[barrier].bytes -= box.size * 2
            self.barriers[barrier].settle()

    # ---- matrix products ------------------------------------------------------------------------

    def tile(self, descriptor: int, rows: int, transposed: bool) -> Array:
        """[rows, 16] halves from shared memory: the descriptor has start, strides and swizzle."""
        start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
        width = {1: 128, 2: 64, 3: 32}[descriptor >> 62]
        r, k = np.arange(rows)[:, None], np.arange(16)[None, :]
        if transposed:
            step = width // 2
            at = start + r // step * leading + k // 8 * stride + k % 8 * width + r % step * 2
        else:
            at = start + r // 8 * stride + r % 8 * width + k * 2
        at = swizzled(at, width)
        return self.shared[at].astype(np.uint16) | self.shared[at + 1].astype(np.uint16) << 8

    def product(self, i: Instruction) -> None:
        """HGMMA: D = A B + C per group of four warps; A from registers or shared memory."""
        columns = int(i.flags[0].split("x")[1])
        out, *rest = i.operands
        in_registers = rest[0].startswith("R")
        tiles, addend = rest[in_registers], rest[in_registers + 1]
        pair = int(re.search(r"UR(\d+)", tiles)[1])  # type: ignore[index]
        thread = np.arange(128)
        row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
        _, target = self.file(out)
        for group in range(self.threads // 128):
            lanes = slice(group * 128, group * 128 + 128)
            words = [int(self.uniform[pair + n, group * 128]) for n in range(4)]
            b = self.tile(words[2] | words[3] << 32, columns, ".tnspB" in tiles)
            if in_registers:
                a = np.zeros((64, 16), np.uint16)
                for n in range(4):
                    word = self.registers[self.file(rest[0])[1] + n, lanes]
                    a[row + n % 2 * 8, column + n // 2 * 8] = word & U32(0xFFFF)
                    a[row + n % 2 * 8, column + n // 2 * 8 + 1] = word >> U32(16)
            else:
                a = self.tile(words[0] | words[1] << 32, 64, ".tnspA" in tiles)
            places = [
                (row + n // 2 % 2 * 8, column + n // 4 * 8 + n % 2) for n in range(columns // 2)
            ]
            d = np.zeros((64, columns))
            if addend != "RZ":
                for n, place in enumerate(places):
                    d[place] = floats(self.registers[self.file(addend)[1] + n, lanes])
            d += from_bf16(a).astype(np.float64) @ from_bf16(b).astype(np.float64).T
            for n, place in enumerate(places):
                self.registers[target + n, lanes] = bits(d[place])


# Order and waiting: nothing to do where every instruction ends before the next begins.
IGNORED = {
    "NOP", "BSSY", "BSYNC", "BREAK", "FENCE", "MEMBAR", "DEPBAR", "LDGDEPBAR", "WARPGROUP",
    "WARPSYNC", "ERRBAR",
}  # fmt: skip
INSTRUCTIONS: dict[str, Callable[[Machine, Instruction], None]] = {
    "HGMMA": Machine.product, "UTMALDG": Machine.bulk_copy, "SYNCS": Machine.barrier,
    "LDSM": Machine.matrices, "STSM": Machine.matrices, "LDGSTS": Machine.copy_async,
    "LDS": Machine.load, "LDG": Machine.load, "STS": Machine.store, "STG": Machine.store,
    "FADD": Machine.real, "FMUL": Machine.real, "FFMA": Machine.real, "F2FP": Machine.pack,
    "MUFU": Machine.function, "PRMT": Machine.permute, "R2UR": Machine.to_uniform,
    "FSETP": Machine.compare_real, "FSEL": Machine.choose_real, "FMNMX": Machine.extreme,
    "SHFL": Machine.shuffle, "UPRMT": Machine.permute, "I2F": Machine.to_real,
    "F2I": Machine.to_integer, "IABS": Machine.magnitude,
    "VOTEU": Machine.vote, "S2R": Machine.special, "S2UR": Machine.special,
    "CS2R": Machine.clear_pair, "PLOP3": Machine.predicate_logic, "P2R": Machine.pack_predicates,
    "UP2UR": Machine.pack_predicates, "VIMNMX": Machine.smaller, "VIADDMNMX": Machine.smaller,
    "ELECT": lambda m, i: m.write(i.operands[0], np.arange(m.threads) % 32 == 0),
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD"), Machine.add),
    **dict.fromkeys(("IMAD", "UIMAD"), Machine.multiply_add),
    **dict.fromkeys(("LEA", "ULEA"), Machine.shift_add),
    **dict.fromkeys(("SHF", "USHF"), Machine.shift),
    **dict.fromkeys(("SGXT", "USGXT"), Machine.extend),
    **dict.fromkeys(("LOP3", "ULOP3"), Machine.logic),
    **dict.fromkeys(("ISETP", "UISETP"), Machine.compare),
    **dict.fromkeys(("MOV", "UMOV", "LDC", "ULDC"), Machine.copy),
    **dict.fromkeys(("SEL", "USEL"), Machine.choose),
}  # fmt: skip


def disassemble(launch: dict[str, Any], assembler: Path) -> str:
    """The machine code for sm_90 of a recorded launch, by this assembler."""
    kernel, (signature, constants, attributes) = launch["kernel"], launch["source"]
    source = ASTSource(kernel, signature, constants, attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch["options"]).asm[
        "ptx"
    ]
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_text(ptx)
        subprocess.run([assembler, "--gpu-name=sm_90a", text, "-o", cubin], check=True)
        listing = subprocess.run(
            [TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True
        )
    return listing.stdout


def parameters(values: list[Any]) -> tuple[bytes, dict[int, TensorDescriptor]]:
    """A launch's constants: its arguments, each at its alignment; descriptors by their address."""
    packed = bytearray(0x1000)
    packed[CONSTANTS_AT : CONSTANTS_AT + 8] = WINDOW.to_bytes(8, "little")
    descriptors: dict[int, TensorDescriptor] = {}
    at = PARAMETERS
    for value in values:
        if isinstance(value, TensorDescriptor):
            at = (at + 63) // 64 * 64
            descriptors[WINDOW + at - PARAMETERS] = value
            rank = len(value.shape)
            at += 128 + rank * 4 + rank * 8  # the descriptor, then shape and strides
            continue
        if isinstance(value, torch.Tensor):
            raw = value.data_ptr().to_bytes(8, "little")
        elif isinstance(value, float):
            raw = np.float32(value).tobytes()
        else:
            raw = int(value).to_bytes(4, "little", signed=True)
        at = (at + len(raw) - 1) // len(raw) * len(raw)
        packed[at : at + len(raw)] = raw
        at += len(raw)
    return bytes(packed), descriptors


def execute(launch: dict[str, Any], assembler: Path, programs: int) -> dict[str, Any]:
    """Runs the first programs of a recorded launch on its tensors; its constants by name."""
    names = launch["kernel"].arg_names
    values = launch["arguments"]
    constants, descriptors = parameters(values)
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    machine = Machine(launch["options"]["num_warps"], constants, descriptors, tensors)
    code, labels = parse(disassemble(launch, assembler))
    for machine.program in range(programs):
        machine.run(code, labels)
    return {names[place]: value for (place,), value in launch["source"][1].items()}


def recorded(wrapper: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """The last launch of a call on a Hopper GPU, and what the call returns: yet to be computed."""
    results: list[Any] = []
    compile_ahead.CALLS["recorded"] = lambda: results.append(wrapper())
    return compile_ahead.record("recorded", {}, 90)[-1], results[0]


@dataclass
class Run:
    """Errors of tensors, the launch that made them and whether it takes the newest assembler."""

    errors: list[float]
    newest: bool


def run_linear(make: kernel_cases.Make, assembler: Path, tokens: int, K: int, V: int) -> Run:
    """One head, its first block of V: the output and the state."""
    q, k, v = (
        make.normal(1, tokens, 1, K),
        make.keys(1, tokens, 1, K),
        make.normal(1, tokens, 1, V),
    )
    gate = make.gate(1, tokens, 1)
    launch, results = recorded(
        lambda: compile_ahead.linear_attention.chunked_linear_attention(
            q, k, v, log_decay=gate, output_final_state=True
        )
    )
    decays = launch["arguments"][launch["kernel"].arg_names.index("decays")]
    chunk = compile_ahead.linear_attention.LARGEST_CHUNK
    for first in range(0, tokens, chunk):  # as chunk_decay_kernel writes them
        part = slice(first, first + chunk)
        decays[0, 0, part] = gate[0, part, 0].cumsum(0) / np.log(2)
    block = slice(0, execute(launch, assembler, programs=1)["BLOCK_V"])
    wanted = kernel_cases.linear_reference(q, k, v, gate)
    errors = [
        kernel_cases.relative_rms(got[..., block], expected[..., block])
        for got, expected in zip(results, wanted, strict=True)
    ]
    return Run(errors, launch["newest"])


def run_attention(
    make: kernel_cases.Make, assembler: Path, tokens: int, D: int, window: int | None
) -> Run:
    """One head, all its queries."""
    q, k, v = (make.normal(1, tokens, 1, D) for _ in range(3))
    launch, out = recorded(
        lambda: compile_ahead.flash_attention.flash_attention(q, k, v, window=window)
    )
    execute(launch, assembler, programs=-(-tokens // 128))
    expected = kernel_cases.attention_reference(q, k, v, window)
    return Run([kernel_cases.relative_rms(out, expected)], launch["newest"])


def run_latent(make: kernel_cases.Make, assembler: Path, tokens: int, lora: int) -> Run:
    """One block of 64 heads over one split."""
    q, cache = make.normal(1, 1, 64, lora + 64), make.normal(1, tokens, 1, lora + 64)
    launch, out = recorded(
        lambda: compile_ahead.latent_decode.latent_decode(
            q, cache, lora=lora, scale=0.05, num_splits=1
        )
    )
    execute(launch, assembler, programs=1)
    expected = kernel_cases.attention_reference(q, cache, cache[..., :lora], scale=0.05)
    return Run([kernel_cases.relative_rms(out, expected)], launch["newest"])


CASES: dict[str, Callable[[kernel_cases.Make, Path], Run]] = {
    "linear, K = V = 128, ragged": partial(run_linear, tokens=150, K=128, V=128),
    "linear, K = V = 64, ragged": partial(run_linear, tokens=150, K=64, V=64),
    "linear, K = 128, V = 64, whole": partial(run_linear, tokens=128, K=128, V=64),
    "attention, D = 128": partial(run_attention, tokens=200, D=128, window=None),
    "attention, D = 64, windowed": partial(run_attention, tokens=200, D=64, window=70),
    "latent decode": partial(run_latent, tokens=150, lora=512),
}


def main() -> list[dict[str, Any]]:
    """Every case by both assemblers of Triton's package."""
    rows = []
    for name, run in CASES.items():
        for assembler in ("ptxas", "ptxas-blackwell"):
            generator = torch.Generator().manual_seed(0)
            make = kernel_cases.Make(
                dtype=torch.bfloat16, device="cpu", small=False, generator=generator
            )
            found = run(make, TOOLS / assembler)
            chosen = found.newest == (assembler == "ptxas-blackwell")
            row = {"case": name, "assembler": assembler, "chosen": chosen}
            rows.append(row | {"error": max(found.errors)})
    return rows


if __name__ == "__main__":
    print(json.dumps(main()))
