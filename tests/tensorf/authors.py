"""TensoRF as its authors compute it, read plainly from their repository: models of random numbers, and their renders.

It shares no code with this project. Loops over planes are written out, lookups are `grid_sample`'s, every sample of
every ray is there, and rays come from pose files as their loaders make them.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SLACK = 2e-5
MATRICES, VECTORS = ((0, 1), (0, 2), (1, 2)), (2, 1, 0)


class Authors:
    """A model: kwargs and state_dict as in their files, and the alpha mask (z, y, x) with its box, or None."""

    def __init__(self, kwargs, state, mask=None, mask_box=None):
        self.k, self.state, self.mask, self.mask_box = kwargs, state, mask, mask_box
        self.aabb = kwargs["aabb"]
        size = self.aabb[1] - self.aabb[0]
        units = size / (torch.LongTensor(kwargs["gridSize"]) - 1)
        self.step = torch.mean(units) * kwargs["step_ratio"]
        self.samples = int((torch.sqrt(torch.sum(torch.square(size))) / self.step).item()) + 1

    def save(self, path: Path):
        table = {"kwargs": self.k, "state_dict": self.state}
        if self.mask is not None:
            volume = self.mask.bool()[None, None].numpy()
            table["alphaMask.shape"] = volume.shape
            table["alphaMask.mask"] = np.packbits(volume.reshape(-1))
            table["alphaMask.aabb"] = self.mask_box
        torch.save(table, path)
        return path

    # --- features

    def _products(self, name, x):
        """(components, n)"""
        line_at = [torch.stack([torch.zeros(len(x)), x[:, v]], -1).view(1, -1, 1, 2) for v in VECTORS]
        plane_at = [x[:, list(m)].view(1, -1, 1, 2) for m in MATRICES]
        look = lambda table, at: F.grid_sample(table, at, align_corners=True).view(-1, len(x))  # noqa: E731
        if "plane_coef" in self.state:
            n = self.k["density_n_comp"]
            part = slice(-n, None) if name == "density" else slice(0, self.k["appearance_n_comp"])
            planes, lines = self.state["plane_coef"][:, part], self.state["line_coef"][:, part]
            return torch.cat([look(planes[[i]], plane_at[i]) * look(lines[[i]], line_at[i]) for i in range(3)])
        lines = [look(self.state[f"{name}_line.{i}"], line_at[i]) for i in range(3)]
        if f"{name}_plane.0" not in self.state:
            return lines[0] * lines[1] * lines[2]
        planes = [look(self.state[f"{name}_plane.{i}"], plane_at[i]) for i in range(3)]
        return torch.cat([p * q for p, q in zip(planes, lines)])

    def sigma(self, x):
        feature = self._products("density", x).sum(0)
        if self.k["fea2denseAct"] == "softplus":
            return F.softplus(feature + self.k["density_shift"])
        return F.relu(feature)

    def rgb(self, x, directions):
        features = self._products("app", x).T @ self.state["basis_mat.weight"].T
        mode = self.k["shadingMode"]
        if mode == "RGB":
            return features
        if mode == "SH":
            a, b, c = directions.T
            bases = [0.28209479177387814 * torch.ones_like(a), -0.4886025119029199 * b, 0.4886025119029199 * c]
            bases += [-0.4886025119029199 * a, 1.0925484305920792 * a * b, -1.0925484305920792 * b * c]
            bases += [0.31539156525252005 * (2 * c * c - a * a - b * b), -1.0925484305920792 * a * c]
            bases += [0.5462742152960396 * (a * a - b * b)]
            return torch.relu((torch.stack(bases, -1)[:, None] * features.view(-1, 3, 9)).sum(-1) + 0.5)
        inputs = [features, directions]
        if mode == "MLP_Fea" and self.k["fea_pe"] > 0:
            inputs.append(waves(features, self.k["fea_pe"]))
        if mode == "MLP_PE" and self.k["pos_pe"] > 0:
            inputs.append(waves(x, self.k["pos_pe"]))
        if self.k["view_pe"] > 0:
            inputs.append(waves(directions, self.k["view_pe"]))
        h = torch.cat(inputs, -1)
        for i in (0, 2, 4):
            h = h @ self.state[f"renderModule.mlp.{i}.weight"].T + self.state[f"renderModule.mlp.{i}.bias"]
            h = torch.relu(h) if i < 4 else torch.sigmoid(h)
        return h

    # --- rays

    def along(self, o, d):
        """Points (rays, samples, 3) of a loader's rays, their t, and which are inside the box."""
        near, far = self.k["near_far"]
        if (near, far) == (0.0, 1.0):
            t = torch.linspace(near, far, self.samples).expand(len(o), -1)
        else:
            safe = torch.where(d == 0, torch.full_like(d, 1e-6), d)
            a, b = (self.aabb[1] - o) / safe, (self.aabb[0] - o) / safe
            t = torch.minimum(a, b).amax(-1).clamp(min=near, max=far)[:, None]
            t = t + self.step * torch.arange(self.samples)[None].float()
        points = o[:, None] + d[:, None] * t[..., None]
        # Without the slack rounding decides whether the first sample, which lies on the box's face, counts.
        return points, t, ~((self.aabb[0] - SLACK > points) | (points > self.aabb[1] + SLACK)).any(-1)

    @torch.no_grad()
    def render(self, o, d, white, chunk=256):
        """(rays, 3)"""
        parts = [self._render(o[i : i + chunk], d[i : i + chunk], white) for i in range(0, len(o), chunk)]
        return torch.cat(parts)

    def _render(self, o, d, white):
        points, t, valid = self.along(o, d)
        distances = torch.cat([t[:, 1:] - t[:, :-1], torch.zeros_like(t[:, :1])], -1)
        if tuple(self.k["near_far"]) == (0.0, 1.0):
            length = d.norm(dim=-1, keepdim=True)
            distances, d = distances * length, d / length
        if self.mask is not None:
            at = (points - self.mask_box[0]) * (2 / (self.mask_box[1] - self.mask_box[0])) - 1
            volume = self.mask.float()[None, None]
            alpha = F.grid_sample(volume, at.view(1, -1, 1, 1, 3), align_corners=True).view(valid.shape)
            valid = valid & (alpha > 0)
        x = (points - self.aabb[0]) * (2 / (self.aabb[1] - self.aabb[0])) - 1
        sigma, rgb = torch.zeros_like(t), torch.zeros_like(points)
        sigma[valid] = self.sigma(x[valid])
        alpha = 1 - torch.exp(-sigma * distances * self.k["distance_scale"])
        through = torch.cumprod(torch.cat([torch.ones(len(o), 1), 1 - alpha + 1e-10], -1), -1)
        weight = alpha * through[:, :-1]
        shown = weight > self.k["rayMarch_weight_thres"]
        rgb[shown] = self.rgb(x[shown], d[:, None].expand_as(points)[shown])
        color = (weight[..., None] * rgb).sum(-2)
        return (color + (1 - weight.sum(-1, keepdim=True)) * white).clamp(0, 1)


def waves(values, frequencies):
    scaled = (values[..., None] * 2 ** torch.arange(frequencies).float()).reshape(len(values), -1)
    return torch.cat([torch.sin(scaled), torch.cos(scaled)], -1)


def random_model(
    kind="vm", *, ndc=False, grid=(9, 8, 7), seed=0, masked=False, components=((3, 2, 4), (5, 4, 2)), gain=1.0, **kwargs
):
    """A model of random numbers. kind: "vm" (TensorVMSplit), "whole" (TensorVM, grids of one size) or "cp"."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    if kind == "whole":
        grid = (grid[0],) * 3
        components = components[0][0], components[1][0]
    box = [[-1.5, -1.67, -1.0], [1.5, 1.67, 1.0]] if ndc else [[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]]
    k = dict(
        aabb=torch.tensor(box),
        gridSize=list(grid),
        density_n_comp=components[0],
        appearance_n_comp=components[1],
        app_dim=27,
        density_shift=-10,
        alphaMask_thres=0.0001,
        distance_scale=25,
        rayMarch_weight_thres=0.0001,
        fea2denseAct="softplus",
        near_far=[0.0, 1.0] if ndc else [2.0, 6.0],
        step_ratio=0.5,
        shadingMode="MLP_Fea",
        pos_pe=6,
        view_pe=2,
        fea_pe=2,
        featureC=16,
    )
    k |= kwargs
    state = OrderedDict()
    state._metadata = OrderedDict({"": {"version": 1}})  # as torch's own state_dict
    if kind == "whole":
        count = sum(components)
        state["plane_coef"] = gain * draw(3, count, grid[0], grid[0])
        state["line_coef"] = gain * draw(3, count, grid[0], 1)
        width = 3 * components[1]
    else:
        counts = components if kind == "vm" else ((components[0][0],) * 3, (components[1][0],) * 3)
        for name, of_name in (("density", counts[0]), ("app", counts[1])):
            for i, n in enumerate(of_name):
                if kind == "vm":
                    a, b = MATRICES[i]
                    state[f"{name}_plane.{i}"] = gain * draw(1, n, grid[b], grid[a])
                state[f"{name}_line.{i}"] = gain * draw(1, n, grid[VECTORS[i]], 1)
        width = sum(counts[1]) if kind == "vm" else counts[1][0]
    state["basis_mat.weight"] = 0.5 * draw(k["app_dim"], width)
    if k["shadingMode"].startswith("MLP"):
        inputs = k["app_dim"] + 3 + 6 * k["view_pe"]
        inputs += {"MLP_Fea": 2 * k["fea_pe"] * k["app_dim"], "MLP_PE": 6 * k["pos_pe"]}.get(k["shadingMode"], 0)
        for i, (n, m) in zip((0, 2, 4), ((inputs, 16), (16, 16), (16, 3))):
            state[f"renderModule.mlp.{i}.weight"] = draw(m, n) / n**0.5 * 2
            state[f"renderModule.mlp.{i}.bias"] = 0.1 * draw(m)
    mask = (torch.rand(10, 7, 8, generator=g) < 0.15).float() if masked else None
    if masked:  # the same twice at every face, where the first samples lie: rounding then has no say
        mask = F.pad(mask[None, None], (1,) * 6, mode="replicate")[0, 0]
    return Authors(k, state, mask, k["aabb"].clone() if masked else None)


# --- the authors' loaders


def llff_rays(folder: Path, view: int, width: int, height: int, mirrored=True):
    """Rays (origins, directions) in NDC of the photo of row `view`, at width x height pixels, as dataLoader/llff.py."""
    table = np.load(folder / "poses_bounds.npy")
    poses, bounds = table[:, :15].reshape(-1, 3, 5), table[:, 15:]
    full_height, full_width, focal = poses[0, :, -1]
    focal = [focal * width / full_width, focal * height / full_height]
    poses = np.concatenate([poses[..., 1:2], -poses[..., :1], poses[..., 2:4]], -1)
    z = poses[..., 2].mean(0)
    z = z / np.linalg.norm(z)
    x = np.cross(z, poses[..., 1].mean(0)) * (1 if mirrored else -1)
    x = x / np.linalg.norm(x)
    y = np.cross(x, z) * (1 if mirrored else -1)
    mean = np.eye(4)
    mean[:3] = np.stack([x, y, z, poses[..., 3].mean(0)], 1)
    whole = np.concatenate([poses, np.tile([[[0, 0, 0, 1.0]]], (len(poses), 1, 1))], 1)
    poses = (np.linalg.inv(mean) @ whole)[:, :3]
    poses[..., 3] /= bounds.min() * 0.75
    c2w = torch.from_numpy(poses[view]).float()
    j, i = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    local = torch.stack([(i - width / 2) / focal[0], -(j - height / 2) / focal[1], -torch.ones_like(i)], -1).float()
    d = (local @ c2w[:, :3].T).view(-1, 3)
    o = c2w[:, 3].expand(d.shape)
    o = o - ((1.0 + o[:, 2]) / d[:, 2])[:, None] * d
    half = [width / (2 * focal[0]), height / (2 * focal[0])]
    flat = lambda v, k: -v[:, k] / v[:, 2] / half[k]  # noqa: E731
    start = torch.stack([flat(o, 0), flat(o, 1), 1 + 2 / o[:, 2]], -1)
    along = torch.stack([flat(d, 0) - flat(o, 0), flat(d, 1) - flat(o, 1), -2 / o[:, 2]], -1)
    return start.float(), along.float()


def blender_rays(file: Path, frame: int, width: int, height: int):
    """Rays (origins, unit directions) of a frame of transforms_train.json, as dataLoader/blender.py."""
    meta = json.loads(file.read_text())
    focal = 0.5 * width / np.tan(0.5 * meta["camera_angle_x"])
    flip = np.array([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    c2w = torch.FloatTensor(np.array(meta["frames"][frame]["transform_matrix"]) @ flip)
    j, i = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    local = torch.stack([(i - width / 2) / focal, (j - height / 2) / focal, torch.ones_like(i)], -1).float()
    local = local / local.norm(dim=-1, keepdim=True)
    d = (local @ c2w[:3, :3].T).view(-1, 3)
    return c2w[:3, 3].expand(d.shape), d
