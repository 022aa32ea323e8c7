// Lets a build of torch without CUDA have tensors that say they are on a GPU, so that fake ones can be made there:
// a device guard that does nothing, and hooks that say that there are two devices. To be imported before torch.
#include <ATen/detail/CUDAHooksInterface.h>
#include <Python.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kCuda = c10::DeviceType::CUDA;
c10::DeviceIndex current = 0;

c10::Stream stream_of(c10::Device device) {
  return c10::Stream(c10::Stream::DEFAULT, device);
}

struct NothingGuard final : c10::impl::NoOpDeviceGuardImpl<kCuda> {
  c10::Device getDevice() const override { return {kCuda, current}; }
  c10::Device exchangeDevice(c10::Device device) const override {
    c10::Device before{kCuda, current};
    current = device.index() < 0 ? current : device.index();
    return before;
  }
  void setDevice(c10::Device device) const override { exchangeDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { exchangeDevice(device); }
  c10::DeviceIndex deviceCount() const noexcept override { return 2; }
  c10::Stream getStream(c10::Device device) const noexcept override { return stream_of(device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return stream_of(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return stream_of(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return stream_of(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
};

struct TwoDevices final : at::CUDAHooksInterface {
  explicit TwoDevices(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 2; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
};

using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, TwoDevices)

PyModuleDef module = {PyModuleDef_HEAD_INIT, "fake_cuda_device", nullptr, -1, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_fake_cuda_device() {
  static c10::impl::DeviceGuardImplRegistrar registrar(kCuda, new NothingGuard());
  return PyModule_Create(&module);
}
