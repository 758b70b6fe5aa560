"""Sound in, words out, in NumPy: the same code trains a model and serves a packed file."""

from subtone.speech.audio import AudioError, audio_blocks, check_samples, read_audio
from subtone.speech.ctc_search import CtcBeamSearch, CtcGreedySearch
from subtone.speech.data import Utterance, read_manifest, spread, write_manifest
from subtone.speech.decode import collapse_ctc, greedy_ctc
from subtone.speech.fbank import KaldiFbank
from subtone.speech.features import FrontEnd, front_end_from_json
from subtone.speech.front_end import FeatureStream, MelFrontEnd
from subtone.speech.normalize import CausalNormalize, GlobalNormalize, statistics_of
from subtone.speech.pieces import PieceTokenizer, tokenizer_from_json
from subtone.speech.recognize import Recognizer, Transcript
from subtone.speech.search import Hypothesis
from subtone.speech.text import CharTokenizer, Tokenizer, WordErrors, word_errors
from subtone.speech.transducer_search import TransducerBeamSearch, TransducerGreedySearch, TransducerModel

__all__ = [
    "AudioError",
    "CausalNormalize",
    "CharTokenizer",
    "CtcBeamSearch",
    "CtcGreedySearch",
    "FeatureStream",
    "FrontEnd",
    "GlobalNormalize",
    "Hypothesis",
    "KaldiFbank",
    "MelFrontEnd",
    "PieceTokenizer",
    "Recognizer",
    "Tokenizer",
    "Transcript",
    "TransducerBeamSearch",
    "TransducerGreedySearch",
    "TransducerModel",
    "Utterance",
    "WordErrors",
    "audio_blocks",
    "check_samples",
    "collapse_ctc",
    "front_end_from_json",
    "greedy_ctc",
    "read_audio",
    "read_manifest",
    "spread",
    "statistics_of",
    "tokenizer_from_json",
    "word_errors",
    "write_manifest",
]
