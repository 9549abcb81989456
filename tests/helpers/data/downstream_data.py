"""Small files in the layouts of the downstream sets: BAIR's TFRecords, RoboNet's and VP2's HDF5, for tests."""

import io
from pathlib import Path

import av
import h5py
import numpy as np
from rlds_data import picture
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.episodes.frames import encode_jpeg
from pipeline.sources.tfrecord.reader import write_record


def bair_record(seed: int, steps: int = 3, change=None) -> bytes:
    features: dict = {}
    for t in range(steps):
        for camera, offset in (("main", 50), ("aux1", 0)):
            features[f"{t}/image_{camera}/encoded"] = picture(seed + t + offset, 64, 64).tobytes()
        features[f"{t}/action"] = [float(seed), float(t), 0.5, -0.5]
        features[f"{t}/endeffector_pos"] = [float(t)] * 3
    for name, value in (change or {}).items():
        features.pop(name)
        if value is not None:
            features[name] = value
    example = tf_example_pb2.Example()
    for name, value in features.items():
        if isinstance(value, bytes):
            example.features.feature[name].bytes_list.value.append(value)
        else:
            example.features.feature[name].float_list.value.extend(value)
    return example.SerializeToString(deterministic=True)


def write_bair(root: Path, train: list[bytes]) -> None:
    """Files that hold what their names say: `train` from trajectory 10 on; its first record alone as 2, and for testing."""
    files = {f"train/traj_10_to_{9 + len(train)}": train, "train/traj_2_to_2": train[:1], "test/traj_0_to_0": train[:1]}
    for name, records in files.items():
        path = root / "softmotion30_44k" / f"{name}.tfrecords"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for record in records:
                write_record(file, record)


def mp4(frames: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 48, 64, "yuv420p", 8_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_robonet(path: Path, encoding="jpg", order="RGB", frames=5, states=5, actions=4, dim=5, **about) -> None:
    """An episode; `about` are facts that the file states of itself, arrays in `misc`, the others in `metadata`."""
    pictures = [picture(t)[:, :, :: -1 if order == "BGR" else 1] for t in range(frames)]
    with h5py.File(path, "w") as file:
        env = file.create_group("env")
        env.attrs["n_cams"], env.attrs["cam_encoding"] = 1, encoding
        if encoding == "mp4":
            first = env.create_dataset("cam0_video/frames", data=np.frombuffer(mp4(pictures), np.uint8))
            first.attrs["T"] = frames
        else:
            for t, pixels in enumerate(pictures):
                env.create_dataset(f"cam0_video/frame{t}", data=np.frombuffer(encode_jpeg(pixels), np.uint8))
            first = env["cam0_video/frame0"]
        first.attrs["shape"], first.attrs["image_format"] = (48, 64, 3), order
        # The gripper's state: shut, then open from the third step on.
        env["state"] = np.column_stack([np.arange(states), np.where(np.arange(states) < 2, 0.1, 0.9)])
        file["policy/actions"] = np.arange(actions * dim, dtype=np.float64).reshape(actions, dim)
        metadata = file.create_group("metadata")
        for name, value in about.items():
            if isinstance(value, np.ndarray):
                file[f"misc/{name}"] = value
            else:
                metadata.attrs[name] = value


def write_vp2(path: Path, camera="camera_image", train=("demo_2", "demo_0", "demo_9")) -> None:
    """Four demos, of which the masks name those of `train` and one of `valid`; frame t of demo n shows picture 10 n + t."""
    with h5py.File(path, "w") as file:
        for number in range(4):
            demo = file.create_group(f"data/demo_{number}")
            demo[f"obs/{camera}"] = np.stack([picture(10 * number + t) for t in range(3)])
            demo["actions"] = np.full((3, 5), number, np.float64)
        file["mask/train"] = np.array([name.encode() for name in train])
        file["mask/valid"] = np.array([b"demo_1"])
