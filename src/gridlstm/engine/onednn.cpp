/* PyTorch's own oneDNN product, called by itself.
 *
 * torch.mm takes it for float32 only while a switch of the whole process is turned, which changes the products of other
 * threads too. The declaration stands in for <ATen/native/mkldnn/Matmul.h>, whose headers take half a minute to compile:
 * where PyTorch has no such function, this does not link, and the native product is kept. A tensor is one pointer, to
 * what Python knows as Tensor._cdata.
 */
#include <exception>
#include <string>

namespace at {
class Tensor;
namespace native {
/* out = alpha x y + beta out */
void mkldnn_matmul(const Tensor &x, const Tensor &y, const Tensor &out, float beta, float alpha);
}  // namespace native
}  // namespace at

/* out = x y + beta out. Returns NULL, or what went wrong: an exception must not reach the caller, which is no C++. */
extern "C" const char *onednn_product(void *x, void *y, void *out, float beta) {
    thread_local std::string message;
    try {
        at::native::mkldnn_matmul(*reinterpret_cast<at::Tensor *>(&x), *reinterpret_cast<at::Tensor *>(&y),
                                  *reinterpret_cast<at::Tensor *>(&out), beta, 1.0f);
        return nullptr;
    } catch (const std::exception &error) {
        message = error.what();
        return message.c_str();
    }
}
