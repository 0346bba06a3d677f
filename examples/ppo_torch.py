"""The loop of `ppo.py` with the agent written in PyTorch.

python examples/ppo_torch.py [--seed N] [--steps N] [--threads N]
"""

import hashlib

import ppo
import torch
from torch import nn


def network(n_in, n_out, limit=None):
    """Two hidden layers with the initial values of the other script."""
    layers = [nn.Linear(n_in, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_out)]
    for layer in layers[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    if limit is not None:
        nn.init.uniform_(layers[-1].weight, -limit, limit)
    return nn.Sequential(*layers)


class Agent:
    """The part that a framework does."""

    def __init__(self, n_in, n_actions, seed, threads=1):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        self.pi, self.v = network(n_in, n_actions, 0.01), network(n_in, 1)
        self.parameters = [*self.pi.parameters(), *self.v.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, ppo.LR, eps=1e-5)

    @torch.no_grad()
    def act(self, state):
        """Scores of the actions and values, for a row of each environment."""
        x = torch.as_tensor(state)
        return self.pi(x).numpy(), self.v(x)[:, 0].numpy()

    def update(self, states, targets, lr):
        """Some epochs over what was played."""
        self.optimizer.param_groups[0]["lr"] = lr
        x = torch.as_tensor(states)
        t = {k: torch.as_tensor(v) for k, v in targets.items()}
        for _ in range(ppo.EPOCHS):
            for rows in torch.randperm(len(x)).split(ppo.BATCH):
                log_pi = torch.log_softmax(self.pi(x[rows]), dim=1)
                log_p = log_pi.gather(1, t["action"][rows, None])[:, 0]
                ratio = torch.exp(log_p - t["log_p"][rows])
                gain = t["gain"][rows]
                clipped = torch.clamp(ratio, 1.0 - ppo.CLIP, 1.0 + ppo.CLIP) * gain
                error = torch.square(self.v(x[rows])[:, 0] - t["return"][rows])
                loss = (0.5 * error - torch.minimum(ratio * gain, clipped)).mean()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, ppo.MAX_NORM)
                self.optimizer.step()

    def weights(self):
        """A hash of the weights."""
        digest = hashlib.sha256()
        for p in self.parameters:
            digest.update(p.detach().numpy().tobytes())
        return digest.hexdigest()[:16]


if __name__ == "__main__":
    ppo.main(Agent)
