"""The compressive VQ tokenizer: model, config and quantizer."""

from tokenize_offline.tokenizer.config import CompressiveVQConfig
from tokenize_offline.tokenizer.model import CompressiveVQModel, ContextFeatures, TokenizerOutput
from tokenize_offline.tokenizer.quantizer import Quantizer

__all__ = ["CompressiveVQConfig", "CompressiveVQModel", "ContextFeatures", "Quantizer", "TokenizerOutput"]
