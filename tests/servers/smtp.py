"""An SMTP server (aiosmtpd) that insists on STARTTLS and on a password, and writes down what it accepts.

usage: smtp.py FOLDER   with cert.pem and key.pem in it; writes `port`, and `mails` (a JSON object a line).
While a file `delay` is in the folder, it accepts a mail and then answers so late that the sender can be killed meanwhile.
"""
import asyncio
import json
import pathlib
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

folder = pathlib.Path(sys.argv[1])


class Handler:
    async def handle_DATA(self, server, session, envelope):
        mail = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None,
            "authenticated": session.authenticated,
            "content": envelope.content.decode("utf-8", "replace"),
        }
        with open(folder / "mails", "a") as mails:
            mails.write(json.dumps(mail) + "\n")
        if (folder / "delay").exists():
            await asyncio.sleep(20)
        return "250 accepted"


def authenticate(server, session, envelope, mechanism, data):
    is_known = data.login == b"tocsin" and data.password == b"a secret"
    return AuthResult(success=is_known, handled=is_known)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
controller = Controller(
    Handler(),
    hostname="127.0.0.1",
    port=0,
    tls_context=context,
    require_starttls=True,
    authenticator=authenticate,
    auth_required=True,
)


async def main():
    # The controller would connect to its own port to see whether it is up; with port 0 it cannot know it.
    server = await asyncio.get_running_loop().create_server(controller._factory_invoker, "127.0.0.1", 0)
    (folder / "port.new").write_text(str(server.sockets[0].getsockname()[1]))
    (folder / "port.new").rename(folder / "port")
    await server.serve_forever()


asyncio.run(main())
