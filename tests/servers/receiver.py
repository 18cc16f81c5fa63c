"""An HTTP receiver that writes down what it is sent.

usage: receiver.py FOLDER   writes `port`, and `requests` (a JSON object a line).
While a file `delay` is in the folder, it takes a request and then answers so late that the sender can be killed meanwhile.
"""
import http.server
import json
import pathlib
import sys
import time

folder = pathlib.Path(sys.argv[1])


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = {"headers": dict(self.headers), "body": body.decode("utf-8", "replace")}
        with open(folder / "requests", "a") as requests:
            requests.write(json.dumps(request) + "\n")
        if (folder / "delay").exists():
            time.sleep(20)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
(folder / "port.new").write_text(str(server.server_address[1]))
(folder / "port.new").rename(folder / "port")
server.serve_forever()
