"""The control plane: one gRPC stream a node, three doors (join, control, operator), mutual TLS.

gRPC's own log lines are silenced unless GRPC_VERBOSITY asks for them: every failure they tell of is raised
or logged by us as a sentence, and a port scanner should not fill a coordinator's terminal.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
