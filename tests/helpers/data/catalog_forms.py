"""Every RLDS entry of the catalog as a tiny data set in the form in which it is published, as far as that is known.

What differs between data sets is a row of `FORMS`; what isn't known of one follows the commonest form. Pictures and numbers say
where they belong: to a data set, an episode, a step, a camera.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rlds_data import picture
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.config import catalog
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import encode_jpeg, encode_png
from pipeline.sources.rlds.writer import write_rlds
from pipeline.sources.tfrecord.reader import read_records, write_record

F = tfds.features
STEPS, EPISODES = 3, 3
NOT_RLDS = ("tfds_robonet", "bair_robot_pushing", "vp2_robodesk", "vp2_robosuite", "sthsth")
f32, f64, i32, i64, flag = np.float32, np.float64, np.int32, np.int64, np.bool_


@dataclass(frozen=True)
class Form:
    """How a data set is published.

    Attributes:
        action: One tensor (numbers, type), or such a one for each name, which may hold a slash.
        image: `jpeg`, `png`, `none` (a spec that leaves the encoding out; the images are PNG), or `raw` tensors.
        instruction: `text`, `observation` (text there, called natural_language_instruction), `codes` (padded integers), or ``.
        cameras: Colour cameras besides the catalog's.
        depth: Whether there is a depth camera, which is no colour one.
        successes: Of the episodes, where the source says.
        of: Whether file names end in `-of-00002`.
        short: Whether there are N - 1 actions for N frames.
        future: Steps that an action spans.
        swapped: Cameras with red and blue swapped.
    """

    action: Any = (7, f32)
    image: str = "jpeg"
    instruction: str = "text"
    cameras: tuple[str, ...] = ()
    depth: bool = False
    successes: tuple[bool, ...] = ()
    of: bool = True
    short: bool = False
    future: int = 1
    swapped: tuple[str, ...] = ()


WORLD = {"rotation_delta": (3, f32), "terminate_episode": (1, f32), "world_vector": (3, f32)}
BASE = {"base_displacement_vector": (2, f32), "base_displacement_vertical_rotation": (1, f32)}
ARM = {**WORLD, "gripper_closedness_action": (1, f32), "terminate_episode": (3, i32)}
FUTURE = {"future/axis_angle_residual": (30, f32), "future/target_close": (10, i64), "future/xyz_residual": (30, f32)}
BOTH = ("image", "wrist_image")
FIELD = tuple(f"image_{n}" for n in (1, 2, 3, 4))

FORMS = {
    "fractal20220817_data": Form({**ARM, **BASE}, instruction="observation"),
    "robo_net": Form((5, f32), instruction="observation", cameras=("image2",), short=True),
    "kuka": Form({**ARM, **BASE}, instruction="observation", successes=(True, False, True)),
    "bridge": Form({**WORLD, "open_gripper": (0, flag)}, instruction="observation", cameras=("image_2", "image_3")),
    "bc_z": Form(FUTURE, instruction="observation", future=10),
    "language_table": Form((2, f32), "png", "codes"),
    "stanford_mask_vit_converted_externally_to_rlds": Form((5, f32), "none", ""),
    "taco_play": Form(
        {"actions": (7, f32), "rel_actions_gripper": (7, f32), "rel_actions_world": (7, f32)}, "none", "observation"
    ),
    "jaco_play": Form({"gripper_closedness_action": (1, f32), **WORLD}, "none", "observation"),
    "roboturk": Form({**ARM}, "none", "observation"),
    "viola": Form({**WORLD, "gripper_closedness_action": (0, f32)}, "none", "observation"),
    "toto": Form({**WORLD, "open_gripper": (0, flag)}, "none", "observation"),
    "columbia_cairlab_pusht_real": Form({**WORLD, "gripper_closedness_action": (0, f32)}, "none", "observation"),
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": Form((4, f32), "png", depth=True),
    "stanford_hydra_dataset_converted_externally_to_rlds": Form(image="png", swapped=BOTH),
    "nyu_franka_play_dataset_converted_externally_to_rlds": Form((15, f64), depth=True),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": Form((8, f32)),
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": Form((4, f32)),
    "utokyo_xarm_bimanual_converted_externally_to_rlds": Form((14, f32), "png"),
    "kaist_nonprehensile_converted_externally_to_rlds": Form((20, f32)),
    "uiuc_d3field": Form((3, f32), cameras=FIELD, depth=True),
    "utaustin_mutex": Form(image="png", swapped=BOTH),
    "berkeley_fanuc_manipulation": Form((6, f32), "png", swapped=BOTH),
    "cmu_playing_with_food": Form(image="raw"),
    "cmu_play_fusion": Form((9, f32)),
    "cmu_stretch": Form((8, f32), "png"),
    "berkeley_cable_routing": Form({**WORLD}, "none", "observation"),
    "nyu_door_opening_surprising_effectiveness": Form({**ARM}, "none", "observation"),
    "berkeley_autolab_ur5": Form(
        {**WORLD, "gripper_closedness_action": (0, f32)}, "none", "observation", swapped=("hand_image",)
    ),
    "maniskill_dataset_converted_externally_to_rlds": Form(depth=True),
    "stanford_robocook_converted_externally_to_rlds": Form(cameras=("image_1", "image_3", "image_4"), depth=True),
    "berkeley_rpt_converted_externally_to_rlds": Form((8, f32), instruction=""),
    "berkeley_mvp_converted_externally_to_rlds": Form((8, f32), "png", of=False),
    "imperialcollege_sawyer_wrist_cam": Form((8, f32), "png"),
    "berkeley_gnm_recon": Form((2, f64)),
    "berkeley_gnm_cory_hall": Form((2, f64)),
    "berkeley_gnm_sac_son": Form((2, f64)),
}


def form_of(entry: DatasetEntry) -> Form:
    """The form of an entry's data set."""
    return FORMS.get(entry.directory, Form())


def rlds_entries() -> list[str]:
    return [name for name in catalog.datasets() if name not in NOT_RLDS]


def shown(entry: DatasetEntry, camera: str, seed: int, step: int) -> np.ndarray:
    """The picture that a camera truly sees, (48, 64, 3) uint8."""
    number = sum(f"{entry.directory} {camera}".encode())
    return picture(10_000 * number + 100 * seed + step)


def stored(entry: DatasetEntry, camera: str, seed: int, step: int) -> np.ndarray | bytes:
    """The picture as its source holds it: encoded or raw, red and blue swapped where the catalog says so."""
    pixels = shown(entry, camera, seed, step)[:, :, :: -1 if camera in form_of(entry).swapped else 1]
    kind = form_of(entry).image
    return pixels if kind == "raw" else encode_jpeg(pixels) if kind == "jpeg" else encode_png(pixels)


def numbers(name: str, seed: int, step: int, width: int, dtype: Any) -> Any:
    """What one tensor of an action holds."""
    values = np.arange(max(1, width)) + 100 * seed + 10 * step + sum(name.encode()) % 7
    typed = (values % 2 == 0 if dtype is flag else values + 0.25 if np.dtype(dtype).kind == "f" else values).astype(dtype)
    return typed if width else typed[0]


def instruction(entry: DatasetEntry, seed: int) -> str:
    return f"grasp the Würfel {seed} of {entry.directory} \u2192" if form_of(entry).instruction else ""


def expected_action(entry: DatasetEntry, seed: int) -> np.ndarray:
    """(STEPS, A) float32: the parts side by side in the order of their names, of each its first step."""
    form = form_of(entry)
    parts = form.action.items() if isinstance(form.action, dict) else [("", form.action)]
    rows = []
    for step in range(STEPS):
        arrays = [np.atleast_1d(numbers(name, seed, step, *shape)) for name, shape in sorted(parts)]
        rows.append(np.concatenate([array[: len(array) // form.future] for array in arrays]))
    if form.short:
        rows[-1] = np.zeros_like(rows[-1])
    return np.array(rows, np.float32)


def write_entry(root: Path, entry: DatasetEntry, cameras: tuple[str, ...] = ()) -> Path:
    """Write the data set of an entry below a root of data sets; its version folder.

    Args:
        root: As an Open X-Embodiment root is.
        entry: Of the catalog.
        cameras: All of its cameras; by default the entry's and those of its form.
    """
    form = form_of(entry)
    cameras = cameras or tuple(dict.fromkeys((entry.image_key, *entry.other_cameras, *form.cameras)))
    episodes = [_episode(entry, form, seed, cameras) for seed in range(EPISODES)]
    spec = _features(form, cameras)
    folder = write_rlds(root, entry.directory, entry.version, spec, {"train": episodes}, episodes_per_shard=2)
    if form.short:
        _drop_last_actions(folder, max(1, form.action[0]))
    if not form.of:
        for path in folder.glob("*-of-*"):
            path.rename(path.with_name(path.name.partition("-of-")[0]))
    return folder


def _tensor(width: int, dtype: Any) -> Any:
    return F.Tensor(shape=(width,), dtype=dtype) if width else F.Scalar(dtype)


def _features(form: Form, cameras: tuple[str, ...]) -> tfds.features.FeaturesDict:
    encoding = None if form.image == "none" else form.image
    image = F.Tensor(shape=(48, 64, 3), dtype=np.uint8)
    if form.image != "raw":
        image = F.Image(shape=(None, None, 3), encoding_format=encoding)
    observation: dict[str, Any] = {**dict.fromkeys(cameras, image), "state": F.Tensor(shape=(4,), dtype=f32)}
    step: dict[str, Any] = {"is_first": F.Scalar(flag), "is_last": F.Scalar(flag), "is_terminal": F.Scalar(flag)}
    step |= {"reward": F.Scalar(f32), "language_embedding": F.Tensor(shape=(16,), dtype=f32)}
    if form.depth:
        observation["depth"] = F.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png")
    if form.instruction == "text":
        step["language_instruction"] = F.Text()
    elif form.instruction == "observation":
        observation["natural_language_instruction"] = F.Text()
    elif form.instruction == "codes":
        observation["instruction"] = F.Tensor(shape=(64,), dtype=i32)
    if isinstance(form.action, dict):
        step["action"] = F.FeaturesDict({name: _tensor(*shape) for name, shape in form.action.items()})
    else:
        step["action"] = _tensor(*form.action)
    episode: dict[str, Any] = {"steps": F.Dataset({**step, "observation": F.FeaturesDict(observation)})}
    if form.successes:
        episode["success"] = F.Scalar(flag)
    else:
        episode["episode_metadata"] = F.FeaturesDict({"file_path": F.Text()})
    return F.FeaturesDict(episode)


def _episode(entry: DatasetEntry, form: Form, seed: int, cameras: tuple[str, ...]) -> dict[str, Any]:
    steps = [_step(entry, form, seed, t, cameras) for t in range(STEPS)]
    if form.successes:
        return {"steps": steps, "success": form.successes[seed]}
    return {"steps": steps, "episode_metadata": {"file_path": f"/data/{entry.directory}/{seed}.hdf5"}}


def _step(entry: DatasetEntry, form: Form, seed: int, t: int, cameras: tuple[str, ...]) -> dict[str, Any]:
    observation: dict[str, Any] = {camera: stored(entry, camera, seed, t) for camera in cameras}
    observation["state"] = np.full(4, t, f32)
    # Real sets may have neither set.
    step: dict[str, Any] = {"is_first": t == 0, "is_last": False, "is_terminal": False, "reward": f32(0)}
    step["language_embedding"] = np.zeros(16, f32)
    text = instruction(entry, seed)
    if form.depth:
        observation["depth"] = _depth()
    if form.instruction == "text":
        step["language_instruction"] = text
    elif form.instruction == "observation":
        observation["natural_language_instruction"] = text
    elif form.instruction == "codes":
        observation["instruction"] = np.pad([ord(character) for character in text], (0, 64 - len(text))).astype(i32)
    if isinstance(form.action, dict):
        step["action"] = {name: numbers(name, seed, t, *shape) for name, shape in form.action.items()}
    else:
        step["action"] = numbers("", seed, t, *form.action)
    return {**step, "observation": observation}


def _depth() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def _drop_last_actions(folder: Path, width: int) -> None:
    """Take the last action out of every record, as sets do whose last frame leads nowhere."""
    for path in folder.glob("*.tfrecord-*"):
        records = list(read_records(str(path)))
        with path.open("wb") as file:
            for record in records:
                example = tf_example_pb2.Example.FromString(record)
                del example.features.feature["steps/action"].float_list.value[-width:]
                write_record(file, example.SerializeToString())
