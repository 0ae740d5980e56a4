"""An HTTP server for a model, with the API of OpenAI: `fptq-onnx serve`.

app.py has the routes, service.py the model behind them as the event loop sees it, and scheduler.py
the one thread that runs the model.
"""
