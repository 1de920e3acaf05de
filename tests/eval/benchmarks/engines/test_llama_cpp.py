"""What is written for llama.cpp."""

import gguf
import numpy as np

from eval.benchmarks.engines.llama_cpp import write_f16


def test_a_gguf_file_is_written_in_f16(tmp_path):
    """For llama.cpp: matrices in F16 whatever they were, vectors in F32, and every other field as it was."""
    matrix = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tensor("matrix", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("vector", matrix[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_f16(tmp_path / "model.gguf", tmp_path / "f16.gguf")
    reader = gguf.GGUFReader(tmp_path / "f16.gguf")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert found["matrix"].dtype == np.float16
    assert np.array_equal(found["matrix"], gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0).astype("f2"))
    assert np.array_equal(found["vector"], matrix[0])
    assert reader.fields["llama.block_count"].contents() == 3
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16
