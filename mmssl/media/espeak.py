"""Speech by the formant synthesiser eSpeak NG, with the time of every phoneme.

libespeak-ng keeps its state (noise, flutter and echo) in globals of the C library, so what it says depends on all it
said before, and no two threads may use it. It therefore never enters the caller's process: a worker process loads it
once and forks for every utterance. Each utterance starts from the same state and depends on its request alone, and any
number of threads may call `synthesize`. Forking needs a POSIX system.

The worker is this module run as a script: it takes a JSON list of requests on standard input and writes, for each, one
JSON line and the samples that this line announces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import MediaError

if TYPE_CHECKING:
    import numpy

_SYNCHRONOUS = 2  # audio and events through the callback; espeak_Synth returns when all is said
_PHONEME_EVENTS, _IPA, _DO_NOT_EXIT = 0x1, 0x2, 0x8000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_UTF8 = 1
_EVENT_END, _EVENT_PHONEME = 0, 7


@dataclass(frozen=True)
class Request:
    """One utterance to be spoken.

    Attributes:
        text: what is said.
        voice: name of an eSpeak voice and variant, for example "en+f2".
        rate: words per minute, 80 to 450.
        pitch: 0 to 99; 50 is the voice's own, 49 more is about nine semitones.
        range: of the pitch, 0 (monotone) to 99; 50 is the voice's own.
        seed: of the noise in breath and roughness.
    """

    text: str
    voice: str = "en"
    rate: int = 175
    pitch: int = 50
    range: int = 50
    seed: int = 1


@dataclass(frozen=True)
class Utterance:
    """What was spoken.

    Attributes:
        samples: (T,) int16.
        sample_rate: in Hz.
        phones: (first sample, IPA symbol with stress marks) of each phoneme in order; an empty symbol is a pause.
    """

    samples: numpy.ndarray
    sample_rate: int
    phones: tuple[tuple[int, str], ...]


def synthesize(requests: Sequence[Request]) -> list[Utterance]:
    """Speak each request; the same request gives the same samples, whatever was spoken before.

    Raises:
        MediaError: espeakng-loader is not installed, a voice does not exist, or the worker fails.
    """
    import numpy as np

    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    worker = subprocess.run(
        [sys.executable, "-m", "mmssl.media.espeak"],
        input=json.dumps([asdict(request) for request in requests]).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    output, position, utterances = worker.stdout, 0, []
    for request in requests:
        end = output.find(b"\n", position)
        answer: dict[str, Any] = json.loads(output[position:end]) if end >= 0 else {}
        if "num_samples" not in answer:
            reason = answer.get("error") or worker.stderr.decode(errors="replace").strip() or "it gave no reason"
            raise MediaError(f"eSpeak NG could not speak {request}: {reason.splitlines()[-1]}")
        position = end + 1 + 2 * answer["num_samples"]
        samples = np.frombuffer(output[end + 1 : position], dtype="<i2")
        phones = tuple((int(sample), symbol) for sample, symbol in answer["phones"])
        utterances.append(Utterance(samples, answer["sample_rate"], phones))
    return utterances


def _structures() -> tuple[Any, Any]:
    """The types of espeak_EVENT and of the synthesis callback in speak_lib.h, revision 12."""
    import ctypes

    class Identity(ctypes.Union):
        _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_void_p), ("string", ctypes.c_uint8 * 8))

    class Event(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_int),
            ("unique_identifier", ctypes.c_uint),
            ("text_position", ctypes.c_int),
            ("length", ctypes.c_int),
            ("audio_position", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p),
            ("id", Identity),
        )

    callback = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.POINTER(Event), use_errno=False
    )
    return Event, callback


class _Library:
    """libespeak-ng, loaded and initialised once in the worker process."""

    def __init__(self) -> None:
        import ctypes

        import espeakng_loader

        self._ctypes = ctypes
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self._data = Path(espeakng_loader.get_data_path())
        data = str(self._data.parent).encode()
        self.sample_rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _IPA | _DO_NOT_EXIT)
        if self.sample_rate <= 0:
            raise MediaError(f"eSpeak NG does not start with the data in {data.decode()}.")
        _, callback = _structures()
        self._pieces: list[bytes] = []
        self._phones: list[tuple[int, str]] = []
        self._callback = callback(self._receive)  # held here: C keeps only the address
        self._lib.espeak_SetSynthCallback(self._callback)

    def speak(self, request: Request) -> tuple[bytes, list[tuple[int, str]]]:
        """16-bit samples and phonemes of a request."""
        # the library takes the plain voice, without a word, where it does not know the variant
        variant = request.voice.partition("+")[2]
        known = not variant or (self._data / "voices" / "!v" / variant).is_file()
        if not known or self._lib.espeak_SetVoiceByName(request.voice.encode()) != 0:
            raise MediaError(f"there is no voice {request.voice!r}")
        values = {_RATE: request.rate, _VOLUME: 100, _PITCH: request.pitch, _RANGE: request.range}
        for parameter, value in values.items():
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._lib.espeak_ng_SetRandSeed(self._ctypes.c_long(request.seed))
        text = request.text.encode()
        size = self._ctypes.c_size_t(len(text) + 1)
        if self._lib.espeak_Synth(text, size, 0, 1, 0, _UTF8, None, None) != 0:
            raise MediaError("synthesis failed")
        return b"".join(self._pieces), self._phones

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(self._ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                symbol = bytes(event.id.string).split(b"\0")[0].decode(errors="ignore")
                self._phones.append((event.sample, symbol))
            index += 1
        return 0


def _answer(library: _Library, request: Request, output: int) -> None:
    try:
        samples, phones = library.speak(request)
        answer = {"num_samples": len(samples) // 2, "sample_rate": library.sample_rate, "phones": phones}
    except MediaError as error:
        samples, answer = b"", {"error": str(error)}
    with os.fdopen(output, "wb", closefd=False) as stream:
        stream.write(json.dumps(answer).encode() + b"\n" + samples)


def _work() -> int:
    """Answer the requests on standard input, each in a process of its own."""
    requests = [Request(**fields) for fields in json.load(sys.stdin)]
    # whatever the C library prints must not come between the answers
    output = os.dup(1)
    os.dup2(2, 1)
    library = _Library()
    for request in requests:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _answer(library, request, output)
                status = 0
            finally:
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            print(f"the synthesiser died at {request}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_work())
