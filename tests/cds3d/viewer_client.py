"""A client of the viewer's websocket, in place of a browser. Import it only where viser is there."""

import io
import math
import time

import msgspec
import numpy as np
import viser
import zstandard
from PIL import Image
from websockets.sync.client import connect


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def socket_of(viewer, **headers):
    """A client that has told its camera once, as it has to, and has been told by the viewer where to stand."""
    url, before = viewer.url.replace("http://", "ws://"), set(viewer.windows)
    socket = connect(url, subprotocols=[f"viser-v{viser.__version__}"], additional_headers=headers, max_size=None)
    look(socket, viewer.start)
    end = time.monotonic() + 20
    while set(viewer.windows) <= before and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    return socket


def messages(socket, timeout=20):
    """All that the server has sent, until it has been silent for a while."""
    found, end = [], time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            data = socket.recv(timeout=2)
        except TimeoutError:
            break
        size, packed = (int.from_bytes(data[i : i + 8], "little") for i in (0, 8))
        told = msgspec.msgpack.decode(zstandard.decompress(data[16 : 16 + packed], max_output_size=size))
        start = 16 + packed
        buffers = []
        for length in told["binaryBufferLengths"]:
            start += -start % 8
            buffers.append(data[start : start + length])
            start += length
        found += [message | {"buffers": buffers} for message in told["messages"]]
    return found


def look(socket, camera, moved=0.0, at=None, size=(400, 300)):
    """Tell that the browser's camera stands there, in a window of that size.

    at: the point that it turns around, of its own axis if not given.
    """
    wxyz = viser.transforms.SO3.from_matrix(camera.pose[:, :3].double().numpy()).wxyz
    position = (camera.position + moved).tolist()
    message = {
        "type": "ViewerCameraMessage", "wxyz": wxyz.tolist(), "position": position, "near": 0.01, "far": 1000.0,
        "fov": 2 * math.atan(camera.height / 2 / camera.fy), "image_width": size[0], "image_height": size[1],
        "look_at": (camera.position + camera.forward if at is None else at).tolist(),
        "up_direction": (-camera.pose[:, 1]).tolist(),
    }  # fmt: skip
    socket.send(msgspec.msgpack.encode(message))


def pictures(found):
    images = []
    for message in found:
        if message["type"] == "BackgroundImageMessage" and message["rgb_data"]:
            data = message["rgb_data"]
            data = message["buffers"][data["__binary_index"]] if isinstance(data, dict) else data
            images.append(np.asarray(Image.open(io.BytesIO(data))))
    return images
